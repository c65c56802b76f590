"""The files people deploy with: they parse, they fit each other, and they name settings that exist."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from deploy.prometheus.for_operator import TARGET, render
from worker.api.settings import ApiSettings
from worker.settings import Settings

DEPLOY = Path("deploy")
KUBERNETES = DEPLOY / "kubernetes"
SETTINGS = {f"WORKER_{name.upper()}" for model in (Settings, ApiSettings) for name in model.model_fields}
GRACE_S = Settings.model_fields["grace_s"].default
NEEDED_S = GRACE_S + max(10, GRACE_S / 4) + 5 + 2
"""Hand-over, those that take too long, the last events, preStop: see ``Dispatcher.wind_down`` and ``App._wind_down``."""


@functools.cache
def built(folder: str) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not here")
    done = subprocess.run([kubectl, "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(kind: str, name: str, folder: str = "base") -> dict[str, Any]:
    return next(found for found in built(folder) if found["kind"] == kind and found["metadata"]["name"] == name)


def pods(folder: str = "base") -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{found['kind']} {found['metadata']['name']}", found["spec"]["template"]["spec"])
        for found in built(folder)
        if "template" in found.get("spec", {})
    ]


def test_every_setting_named_in_a_deployment_exists():
    named = set()
    for path in (
        *DEPLOY.glob("*.yaml"),
        *DEPLOY.glob("images/*"),
        *DEPLOY.glob("systemd/*"),
        *KUBERNETES.rglob("*.yaml"),
    ):
        named |= set(re.findall(r"\bWORKER_[A-Z0-9_]+\b", path.read_text(encoding="utf-8")))
    assert len(named) > 8
    assert named <= SETTINGS


def test_every_yaml_file_parses():
    for path in DEPLOY.rglob("*.yaml"):
        assert list(yaml.safe_load_all(path.read_text(encoding="utf-8"))), path


def test_a_worker_gets_more_time_to_end_than_its_hand_over_takes():
    assert one("Deployment", "worker")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= NEEDED_S
    assert float(one("ConfigMap", "settings")["data"]["WORKER_GRACE_S"]) == GRACE_S
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert float(compose["services"]["worker"]["stop_grace_period"].rstrip("s")) >= NEEDED_S
    unit = (DEPLOY / "systemd" / "speech-training-worker@.service").read_text(encoding="utf-8")
    assert float(re.search(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[1]) >= NEEDED_S


def test_systemd_waits_longer_for_a_loop_that_stands_still_than_the_process_does_which_can_say_where():
    for unit, model, name in (
        ("speech-training-worker@.service", Settings, "frozen_limit_s"),
        ("speech-training-api.service", ApiSettings, "api_frozen_limit_s"),
    ):
        text = (DEPLOY / "systemd" / unit).read_text(encoding="utf-8")
        limit_s = model.model_fields[name].default
        assert "Type=notify" in text, unit
        assert float(re.search(r"^WatchdogSec=(\d+)", text, re.MULTILINE)[1]) >= 1.5 * limit_s > 0, unit
    assert Settings.model_fields["frozen_limit_s"].default >= Settings.model_fields["lease_s"].default


@pytest.mark.parametrize("folder", ["base", "overlays/production"])
def test_manifests_fit_kubernetes_own_schemas(folder: str):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    unknown = []
    for found in built(folder):
        try:
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.append(found["kind"])
    assert set(unknown) <= {"ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule"}


def test_the_operators_pod_fits_kubernetes_own_schemas_and_what_the_others_are_made_of():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pod, network = yaml.safe_load_all((KUBERNETES / "operator.yaml").read_text(encoding="utf-8"))
    for found in (pod, network):
        kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
    assert network["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["serviceAccountName"] == one("ServiceAccount", "migrator")["metadata"]["name"]
    secrets = [source["secret"]["name"] for source in pod["spec"]["volumes"][0]["projected"]["sources"]]
    assert secrets[0] == "migrator-secrets"
    worker = one("Deployment", "worker")["spec"]["template"]["spec"]
    assert pod["spec"]["securityContext"].items() <= worker["securityContext"].items()
    [container], [theirs] = pod["spec"]["containers"], worker["containers"]
    for part in ("volumeMounts", "securityContext", "envFrom"):
        assert container[part] == theirs[part], part


def test_no_container_runs_as_root_writes_its_image_or_gains_rights():
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] >= 10_000, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"]["memory"], name


def test_no_secret_is_in_the_environment_or_in_the_manifests():
    for name, pod in pods():
        for container in pod["containers"]:
            assert "env" not in container, name
            assert all("secretRef" not in source for source in container["envFrom"]), name
    assert not [found for found in built("base") if found["kind"] == "Secret"]


def test_files_of_secrets_are_for_the_programs_group_alone():
    seen = 0
    for name, pod in pods():
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440, name
                assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"], name
                seen += 1
    assert seen >= 3


def test_every_pod_is_covered_by_a_network_policy_and_a_disruption_budget():
    policies = [found for found in built("base") if found["kind"] == "NetworkPolicy"]
    assert any(
        found["spec"]["podSelector"] == {} and set(found["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        for found in policies
    )
    budgets = {
        found["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        for found in built("base")
        if found["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {found["metadata"]["name"] for found in built("base") if found["kind"] == "Deployment"}


def test_prometheus_reaches_the_metrics_of_worker_and_api_and_customers_do_not():
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text(encoding="utf-8"))
    scraped = {
        config["names"][0]: config["port"]
        for job in prometheus["scrape_configs"]
        for config in job.get("dns_sd_configs", ())
    }
    assert scraped == {"worker": 9108, "api": ApiSettings.model_fields["api_metrics_port"].default}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert not [port for port in compose["services"]["api"]["ports"] if "9109" in port]
    assert one("Service", "api")["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    for name, port in scraped.items():
        container = one("Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        assert {"name": "observe", "containerPort": port} in container["ports"]
        opened = [
            rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for rule in one("NetworkPolicy", name)["spec"]["ingress"]
            if port in {one["port"] for one in rule["ports"]}
        ]
        assert opened == ["monitoring"], name
    assert "WORKER_API_METRICS_HOST=0.0.0.0" in (DEPLOY / "images/Dockerfile").read_text(encoding="utf-8")


def test_the_gpu_component_fits_the_base(tmp_path: Path):
    folder = KUBERNETES.resolve()
    overlay = tmp_path / "overlay"
    shutil.copytree(folder, tmp_path / "kubernetes")
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../kubernetes/base]\ncomponents: [../kubernetes/gpu]\n"
    )
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not here")
    done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    worker = next(
        found
        for found in yaml.safe_load_all(done.stdout)
        if found["kind"] == "Deployment" and found["metadata"]["name"] == "worker"
    )
    assert worker["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_operators_rules_are_made_from_the_rules():
    assert TARGET.read_text(encoding="utf-8") == render(), "run `python -m deploy.prometheus.for_operator`"


def test_compose_is_what_compose_understands():
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker compose is not here")
    done = subprocess.run(
        [compose, "-f", "deploy/compose.yaml", "config", "--format", "json"],
        env={"PATH": "/usr/bin", "HOME": "/nonexistent"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"worker", "api", "postgres", "rabbitmq", "prometheus", "grafana"} <= set(
        json.loads(done.stdout)["services"]
    )


def test_units_are_what_systemd_understands(tmp_path: Path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    for path in (DEPLOY / "systemd").glob("*.service"):
        name = path.name.replace("@.", "@1.")
        text = path.read_text(encoding="utf-8").replace("/opt/speech-training/bin/python", sys.executable)
        (tmp_path / name).write_text(text)
    units = sorted(str(path) for path in tmp_path.glob("*.service"))
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    # Units of the machine itself may have faults; ours may not.
    complaints = [line for line in done.stderr.splitlines() if "speech-training" in line]
    assert not complaints
    for unit in units:
        done = subprocess.run(
            [analyze, "security", "--offline=true", "--threshold=50", unit], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or "migrate" in unit, done.stdout[-300:]


async def test_the_autoscaler_counts_runs_that_a_slot_could_start(database_url: str):
    query = one("ScaledObject", "worker", "overlays/production")["spec"]["triggers"][0]["metadata"]["query"]
    connection = await asyncpg.connect(database_url)
    base = await connection.fetchval(
        "insert into base_languages (key, name, weights) values ('en', 'E', '/x') returning id"
    )

    async def waiting(organization: int, name: str, delay: str = "0 s") -> None:
        model = await connection.fetchval(
            "insert into custom_models (key, name, organization_id, base_language_id) values ($1, $1, $2, $3) returning id",
            name, organization, base,
        )  # fmt: skip
        run = uuid.uuid4()
        async with connection.transaction():
            await connection.execute(
                "insert into training_runs (id, custom_model_id, organization_id, base_language_id, requested_at, due_at)"
                f" values ($1, $2, $3, $4, now(), now() + interval '{delay}')",
                run, model, organization, base,
            )  # fmt: skip
            await connection.execute(
                "insert into run_transitions (id, run_id, sequence, to_status, attempt) values (gen_random_uuid(), $1, 1, 2, 0)",
                run,
            )

    async def organization(cap: int) -> int:
        return await connection.fetchval(
            "insert into organizations (name, max_running) values ('o', $1) returning id", cap
        )

    assert await connection.fetchval(query) == 0
    roomy, capped = await organization(10), await organization(1)
    for number in range(3):
        await waiting(roomy, f"r{number}")
        await waiting(capped, f"c{number}")
    assert await connection.fetchval(query) == 3 + 1, "the capped organization may start one"
    await waiting(roomy, "later", "1 hour")
    assert await connection.fetchval(query) == 4, "a run in back-off needs no slot yet"
    await connection.close()
