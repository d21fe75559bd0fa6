#!/usr/bin/env python3
"""Checks the files in deploy/ and .github/ that other programs read. Run by deploy.rs.

    deploy.py manifests FILE...           Kubernetes: strict schema, and rules of this project;
                                          prints the variables of the proxy, one NAME=value a line
    deploy.py alerts RULES TESTS METRICS  alert rules: their texts, tests and metrics
    deploy.py dashboard FILE METRICS      Grafana: layout, units and metrics; prints a rules file
                                          with all queries, for promtool
    deploy.py workflows FILE...           GitHub: schema, and rules of this project

METRICS is a file with the text of /metrics. Prints each problem and exits with 1 if there is one.
"""

import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import yaml

# The newest schema of the package in tests/requirements.txt.
KUBERNETES_VERSION = "1.37"

# Figures of docs/sizing.md: memory of an entry beside its key and value, the most that the rounding
# of the allocator adds, replies that a slow client can hold, and short values in MGETs in total.
BYTES_PER_ENTRY = 50
ROUNDING = 1.25
BYTES_PER_CLIENT = 256 * 1024
MGET_BYTES = 256 * 1024**2

# Share of the memory limit that must be left for the process and for fragmentation.
RESERVE = 0.03

# Seconds that a shutdown may take beyond SHUTDOWN_GRACE.
SHUTDOWN_MARGIN = 3

SECURITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
            "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]}}

# Labels that Prometheus adds to each sample of a target.
TARGET_LABELS = {"job", "instance"}

SEVERITIES = {"critical", "warning"}

PROBLEMS = []


def check(condition, message):
    """Reports a problem unless the condition holds."""
    if not condition:
        PROBLEMS.append(message)


class StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses a key that occurs twice, as `kubectl --validate=strict` does."""

    def construct_mapping(self, node, deep=False):
        """Builds a mapping, and reports keys that occur twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        check(len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: a key occurs twice")
        return super().construct_mapping(node, deep)


def read_yaml(path):
    """Returns all documents of a YAML file."""
    return list(yaml.load_all(pathlib.Path(path).read_text(), Loader=StrictLoader))


# ---- Kubernetes ----


def read_size(text):
    """Returns the bytes of a size like 512mb, or of a quantity like 1Gi."""
    number, unit = re.fullmatch(r"(\d+)([kmg])[ib]", text.lower()).groups()
    return int(number) * 1024 ** (1 + "kmg".index(unit))


def pre_stop_seconds(container):
    """Returns the seconds from the request to end a pod to SIGTERM."""
    return container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)


def check_proxy(pod, container, where):
    """Checks the container of the proxy in a pod. Prints its variables."""
    variables = {entry["name"]: entry.get("value", "secret") for entry in container["env"]}
    password = next(entry for entry in container["env"] if entry["name"] == "REDIS_PASSWORD")
    check("secretKeyRef" in password.get("valueFrom", {}), f"{where}: a password in clear text")
    check(pod.get("enableServiceLinks") is False, f"{where}: a Service named redis would set REDIS_PORT")
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    for name, value in SECURITY.items():
        check(security.get(name) == value, f"{where}: securityContext.{name} is not {value}")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    # Probes and Prometheus use the admin port if there is one.
    monitored, variable = ("admin", "ADMIN_PORT") if "ADMIN_PORT" in variables else ("proxy", "PROXY_PORT")
    check(str(ports.get(monitored)) == variables[variable], f"{where}: containerPort is not {variable}")
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/healthz")):
        request = container[probe]["httpGet"]
        check((request["path"], request["port"]) == (path, monitored), f"{where}: {probe} does not request {path}")
    shutdown = pre_stop_seconds(container) + float(variables["SHUTDOWN_GRACE"].removesuffix("s")) + SHUTDOWN_MARGIN
    check(pod["terminationGracePeriodSeconds"] >= shutdown,
          f"{where}: terminationGracePeriodSeconds ends a shutdown that takes preStop and SHUTDOWN_GRACE")
    cache = ROUNDING * read_size(variables["CACHE_BYTES"]) + BYTES_PER_ENTRY * int(variables["CACHE_SIZE"])
    clients = read_size(variables["CLIENT_BYTES"]) + BYTES_PER_CLIENT * int(variables["MAX_CONNECTIONS"]) + MGET_BYTES
    needed = (cache + clients) / (1 - RESERVE)
    limit = read_size(container["resources"]["limits"]["memory"])
    check(needed <= limit, f"{where}: cache and clients need {needed:.0f} of {limit} bytes")
    for name, value in variables.items():
        print(f"{name}={value}")
    return ports, ports.get(monitored)


def check_deployment(spec, where):
    """Checks a Deployment. Returns the container of the proxy and its ports."""
    template = spec["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    check(spec["selector"]["matchLabels"].items() <= labels.items(), f"{where}: the selector does not match the pod")
    sidecars = [c for c in pod.get("initContainers", []) if c["name"] == "proxy"]
    check(all(c.get("restartPolicy") == "Always" for c in sidecars), f"{where}: the sidecar would never end")
    (container,) = [c for c in pod["containers"] if c["name"] == "proxy"] + sidecars
    ports, monitored = check_proxy(pod, container, where)
    scraped = template["metadata"]["annotations"]["prometheus.io/port"]
    check(scraped == str(monitored), f"{where}: Prometheus reads another port")
    return container, ports


def check_service(service, container, ports, where):
    """Checks a Service in front of a container."""
    check(all(port["targetPort"] in ports for port in service["ports"]), f"{where}: the Service has no port")
    check(pre_stop_seconds(container) > 0, f"{where}: nodes send clients to a proxy that refuses them, without preStop")


def check_policy(policy, ports, where):
    """Checks a NetworkPolicy of the proxy."""
    inbound = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    outbound = {(port["port"], port.get("protocol", "TCP")) for rule in policy["egress"] for port in rule["ports"]}
    check(inbound == set(ports), f"{where}: the policy does not allow the port of the proxy")
    check(all(rule.get("from") for rule in policy["ingress"]), f"{where}: the policy allows all clients")
    check(outbound == {(53, "UDP"), (53, "TCP"), (6379, "TCP")}, f"{where}: the policy does not allow DNS and Redis")


def check_manifests(paths):
    """Checks Kubernetes manifests. Each file has one Deployment and what belongs to it."""
    for path in paths:
        specs = {}
        for document in read_yaml(path):
            try:
                kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
                specs[document["kind"]] = document["spec"]
            except kubernetes_validate.ValidationError as error:
                problem = f"{'.'.join(map(str, error.path))}: {error.message}"
                check(False, f"{path}: {document['kind']}: {problem}")
        if "Deployment" not in specs:
            continue
        deployment = specs.pop("Deployment")
        labels = deployment["template"]["metadata"]["labels"]
        container, ports = check_deployment(deployment, f"{path}: Deployment")
        for kind, spec in specs.items():
            where = f"{path}: {kind}"
            selector = spec.get("podSelector") or spec["selector"]
            check(selector.get("matchLabels", selector).items() <= labels.items(), f"{where}: selects no pod")
            if kind == "Service":
                check_service(spec, container, ports, where)
            elif kind == "NetworkPolicy":
                check_policy(spec, ports, where)
            else:
                check(spec["maxUnavailable"] < deployment["replicas"], f"{where}: a drain would end all replicas")


# ---- Prometheus and Grafana ----


def read_metrics(path):
    """Returns the label sets of each sample name in the text of /metrics."""
    samples = {"up": [{}]}
    for line in pathlib.Path(path).read_text().splitlines():
        sample = re.match(r"([a-z_]+)(?:\{(.*)\})? ", line)
        if sample and not line.startswith("#"):
            samples.setdefault(sample[1], []).append(dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or "")))
    return samples


def matches(operator, wanted, value):
    """Returns true if a value of a label fits a matcher."""
    is_match = re.fullmatch(wanted, value) is not None if "~" in operator else value == wanted
    return is_match != operator.startswith("!")


def check_query(expression, samples, where):
    """Checks that a query uses metrics and labels that exist. Returns the names of the metrics."""
    unquoted = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:(?:segment|process)_\w+|up)\b", unquoted))
    check(names, f"{where}: a query without a metric: {expression}")
    for name in names:
        check(name in samples, f"{where}: /metrics has no {name}")
    is_total = re.search(r"sum(?: by \((?:job|instance|,| )+\) )?\(rate\(segment_requests_total(?!\{[^}]*outcome)",
                         expression)
    check(not is_total, f"{where}: the total has health checks, without outcome!=\"other\": {expression}")
    labels = set().union(*(sample for name in names for sample in samples.get(name, [])), TARGET_LABELS)
    for name, selector in re.findall(r"\b(\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
            if label not in TARGET_LABELS and name in samples:
                check(any(matches(operator, value, sample.get(label, "")) for sample in samples[name]),
                      f"{where}: no sample has {name}{{{label}{operator}\"{value}\"}}")
    for grouping in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression):
        for label in re.findall(r"\w+", grouping):
            check(label in labels, f"{where}: no metric of the query has the label {label}")
    return names


def check_alerts(rules_path, tests_path, metrics_path):
    """Checks the alert rules and that each has its tests."""
    samples, alerts = read_metrics(metrics_path), []
    for rule in [rule for group in read_yaml(rules_path)[0]["groups"] for rule in group["rules"]]:
        where = rule["alert"]
        alerts.append(where)
        check_query(rule["expr"], samples, where)
        check(rule["labels"]["severity"] in SEVERITIES, f"{where}: severity")
        check(re.fullmatch(r"\d+[sm]", rule["for"]), f"{where}: for")
        check(len(rule["annotations"]["summary"]) <= 120, f"{where}: a summary is one line")
        # What happened and its consequence, then the remedy.
        check(rule["annotations"]["description"].count(". ") >= 1, f"{where}: description")
    tested = {}
    for test in read_yaml(tests_path)[0]["tests"]:
        for case in test["promql_expr_test"]:
            name = re.search(r'alertname="(\w+)", alertstate="firing"', case["expr"])[1]
            check(name == test["name"], f"{test['name']}: a test of {name}")
            tested.setdefault(name, []).append(bool(case["exp_samples"]))
    check(len(alerts) == len(set(alerts)), "two alerts have one name")
    for name in set(alerts) | set(tested):
        check(sorted(tested.get(name, [])) == [False, True], f"{name}: needs a silent and a firing case")


def occupied(panel):
    """Returns the cells of the grid that a panel covers."""
    grid = panel["gridPos"]
    return {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}


def check_dashboard(path, metrics_path):
    """Checks the dashboard. Prints its queries as recording rules."""
    dashboard, samples = json.loads(pathlib.Path(path).read_text()), read_metrics(metrics_path)
    panels, taken, rules = dashboard["panels"], {}, []
    identifiers = [panel["id"] for panel in panels]
    check(len(identifiers) == len(set(identifiers)), "two panels have one id")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    check(variables == {"datasource", "job", "instance"}, f"variables: {variables}")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            check_query(variable["query"]["query"].removeprefix("label_values"), samples, variable["name"])
    for panel in panels:
        where = f"panel {panel['id']}, {panel['title']}"
        check(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, f"{where}: beyond the grid")
        for cell in occupied(panel):
            check(taken.setdefault(cell, where) == where, f"{where}: overlaps {taken[cell]}")
        if panel["type"] == "row":
            continue
        check(panel["fieldConfig"]["defaults"].get("unit"), f"{where}: no unit")
        check(panel["targets"], f"{where}: no query")
        for target in panel["targets"]:
            expression = target["expr"]
            check(target["datasource"]["uid"] == "${datasource}", f"{where}: a fixed data source")
            check(target.get("legendFormat") or panel["type"] == "table", f"{where}: no legend")
            names = check_query(expression, samples, where)
            filtered = expression.count('job=~"$job", instance=~"$instance"')
            used = len(re.findall(r"\b(?:segment|process)_\w+\{", expression))
            check(names and filtered == used, f"{where}: a metric of all instances: {expression}")
            fixed = expression.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$job", ".*")
            check("$" not in fixed, f"{where}: an unknown variable: {expression}")
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                known = set().union(*(sample for name in names for sample in samples.get(name, [])), TARGET_LABELS)
                check(label in known, f"{where}: the legend has an unknown label {label}")
            rules.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": fixed})
    print(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))


# ---- GitHub ----


def check_workflows(paths):
    """Checks workflows of GitHub."""
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *paths]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    check(result.returncode == 0, result.stdout + result.stderr)
    for path in paths:
        text = pathlib.Path(path).read_text()
        # PyYAML reads the key `on` as true.
        workflow = read_yaml(path)[0]
        check("permissions" in workflow, f"{path}: the token has the permissions of the repository's default")
        for name, job in workflow["jobs"].items():
            if "uses" in job:
                check(pathlib.Path(job["uses"]).is_file(), f"{path}: {job['uses']} does not exist")
                continue
            check(job.get("timeout-minutes", 999) <= 60, f"{path}: {name} has no timeout")
            for action in filter(None, (step.get("uses") for step in job["steps"])):
                is_pinned = re.fullmatch(r"actions/[a-z-]+@v\d+", action)
                check(is_pinned, f"{path}: {action} is not one of GitHub's own, with a version")
        for script in set(re.findall(r"\bscripts/[a-z-]+\.(?:sh|py)\b", text)):
            check(pathlib.Path(script).is_file(), f"{path}: {script} does not exist")


COMMANDS = {"manifests": lambda *paths: check_manifests(paths), "alerts": check_alerts,
            "dashboard": check_dashboard, "workflows": lambda *paths: check_workflows(paths)}

COMMANDS[sys.argv[1]](*sys.argv[2:])
print("\n".join(PROBLEMS), file=sys.stderr)
sys.exit(bool(PROBLEMS))
