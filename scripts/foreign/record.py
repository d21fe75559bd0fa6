"""Plugin of pytest that writes a line for each test to a file: its outcome, a tab, its name."""

SEVERITY = ("passed", "skipped", "failed", "error")


def pytest_addoption(parser):
    parser.addoption("--record-outcomes", required=True)


def pytest_configure(config):
    config.pluginmanager.register(Outcomes(config.getoption("--record-outcomes")))


class Outcomes:
    """Outcome of each test: the worst of its phases."""

    def __init__(self, path):
        self.path, self.outcomes = path, {}

    def pytest_runtest_logreport(self, report):
        outcome = report.outcome
        if outcome == "failed" and report.when != "call":
            outcome = "error"
        before = self.outcomes.get(report.nodeid, "passed")
        self.outcomes[report.nodeid] = max(before, outcome, key=SEVERITY.index)

    def pytest_sessionfinish(self):
        with open(self.path, "w", encoding="utf-8") as file:
            for name, outcome in self.outcomes.items():
                file.write(f"{outcome}\t{name}\n")
