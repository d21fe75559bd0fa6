#!/usr/bin/env python3
"""Checks the files in deploy/ that other programs read. Run by deploy.rs.

    deploy.py manifests FILE...           Kubernetes: strict schema, and rules of this project;
                                          prints the variables of the proxy, one NAME=value a line

Prints each problem and exits with 1 if there is one.
"""

import pathlib
import re
import sys

import kubernetes_validate
import yaml

# The newest schema of the package in tests/requirements.txt.
KUBERNETES_VERSION = "1.37"

# Memory of an entry beside its key and value, and the factor for fragmentation (docs/sizing.md).
BYTES_PER_ENTRY = 64
FRAGMENTATION = 1.3

# Seconds that a shutdown may take beyond SHUTDOWN_GRACE.
SHUTDOWN_MARGIN = 3

SECURITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
            "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]}}

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
    check(str(ports["proxy"]) == variables["PROXY_PORT"], f"{where}: containerPort is not PROXY_PORT")
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        request = container[probe]["httpGet"]
        check((request["path"], request["port"]) == (path, "proxy"), f"{where}: {probe} does not request {path}")
    check(pod["terminationGracePeriodSeconds"] >= float(variables["SHUTDOWN_GRACE"].removesuffix("s")) + SHUTDOWN_MARGIN,
          f"{where}: terminationGracePeriodSeconds ends a shutdown that takes SHUTDOWN_GRACE")
    cache = read_size(variables["CACHE_BYTES"]) + BYTES_PER_ENTRY * int(variables["CACHE_SIZE"])
    needed = FRAGMENTATION * cache + read_size(variables["CLIENT_BYTES"])
    limit = read_size(container["resources"]["limits"]["memory"])
    check(needed <= limit, f"{where}: the cache needs {needed:.0f} of {limit} bytes")
    for name, value in variables.items():
        print(f"{name}={value}")
    return ports


def check_manifests(paths):
    """Checks Kubernetes manifests."""
    for path in paths:
        ports, labels, services = {}, {}, []
        for document in read_yaml(path):
            where = f"{path}: {document['kind']}"
            try:
                kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                check(False, f"{where}: {'.'.join(map(str, error.path))}: {error.message}")
                continue
            if document["kind"] == "Service":
                services.append(document["spec"])
                continue
            template = document["spec"]["template"]
            pod, labels = template["spec"], template["metadata"]["labels"]
            selector = document["spec"]["selector"]["matchLabels"]
            check(selector.items() <= labels.items(), f"{where}: the selector does not match the pod")
            proxies = [c for c in pod["containers"] + pod.get("initContainers", []) if c["name"] == "proxy"]
            check(len(proxies) == 1, f"{where}: not one container named proxy")
            for container in proxies:
                ports = check_proxy(pod, container, where)
                scraped = template["metadata"]["annotations"]["prometheus.io/port"]
                check(scraped == str(ports["proxy"]), f"{where}: Prometheus reads another port")
            sidecars = [c for c in pod.get("initContainers", []) if c["name"] == "proxy"]
            check(all(c.get("restartPolicy") == "Always" for c in sidecars), f"{where}: the sidecar would never end")
        for service in services:
            check(service["selector"].items() <= labels.items(), f"{path}: the Service selects no pod")
            check(all(port["targetPort"] in ports for port in service["ports"]), f"{path}: the Service has no port")


COMMANDS = {"manifests": lambda *paths: check_manifests(paths)}

COMMANDS[sys.argv[1]](*sys.argv[2:])
print("\n".join(PROBLEMS), file=sys.stderr)
sys.exit(bool(PROBLEMS))
