"""pytest plugin that writes one line for each test to a file: its outcome, a tab, its name."""

SEVERITY = ("passed", "skipped", "failed", "error")


def pytest_addoption(parser):
    """Adds the option with the path of the file."""
    parser.addoption("--record-outcomes", required=True)


def pytest_configure(config):
    """Registers the recorder."""
    config.pluginmanager.register(Outcomes(config.getoption("--record-outcomes")))


class Outcomes:
    """Outcomes of all tests. The outcome of a test is the worst of its phases."""

    def __init__(self, path):
        self.path, self.outcomes = path, {}

    def pytest_runtest_logreport(self, report):
        """Records the outcome of one phase."""
        outcome = report.outcome
        if outcome == "failed" and report.when != "call":
            outcome = "error"
        before = self.outcomes.get(report.nodeid, "passed")
        self.outcomes[report.nodeid] = max(before, outcome, key=SEVERITY.index)

    def pytest_sessionfinish(self):
        """Writes the file."""
        with open(self.path, "w", encoding="utf-8") as file:
            for name, outcome in self.outcomes.items():
                file.write(f"{outcome}\t{name}\n")
