"""What infra/ ships, by what runs without Docker, Kubernetes and Slurm: schemas, linters, and the start commands themselves."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

import raylens
from tests.command import raylens_command
from tests.servers import free_port
from tests.started import TOOLS, started
from tests.waiting import HUNG, wait_until

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def tool(*command: str) -> None:
    """A linter that finds nothing."""
    done = subprocess.run(command, cwd=ROOT, env=TOOLS, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lowest_versions_are_the_lower_ends_of_the_ranges() -> None:
    """``make lowest`` tests what pyproject.toml allows: of every package that raylens needs, or gives an extra for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["frames"]]
    pins = [line for line in (INFRA / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert pins == sorted(f"{one.name}=={bound.version}" for one in needed for bound in one.specifier if bound.operator == ">=")
    assert len(pins) == len(needed)


def test_scripts_are_clean() -> None:
    """By shellcheck, the scripts of infra and CI."""
    tool("shellcheck", *(str(path) for path in sorted([*INFRA.glob("*.sh"), INFRA / "slurm.sbatch", ROOT / ".ci" / "run"])))


def test_dockerfile_is_clean() -> None:
    """By hadolint; it copies only files that exist, and .dockerignore lets them through."""
    tool("hadolint", "infra/Dockerfile")
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name.rstrip("/") for names in copies for name in names.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_compose_files_are_valid() -> None:
    """By the schema of the Compose specification."""
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "infra/compose.yaml", "infra/compose.gpu.yaml")


def test_kubernetes_resources_are_valid() -> None:
    """By Kubernetes' own schemas, strictly: each resource, and each pod of the RayJob; the RayJob by the fields it uses."""
    resources = list(yaml.safe_load_all((INFRA / "rayjob.yaml").read_text()))
    assert [one["kind"] for one in resources] == ["PersistentVolumeClaim", "Service", "Deployment", "RayJob"]
    *plain, job = resources
    jsonschema.validate(job["spec"], json.loads((ROOT / "tests" / "rayjob.schema.json").read_text()))
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        plain.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]})
    for resource in plain:
        kubernetes_validate.validate(resource, "1.33", strict=True)


def test_rayjob_entrypoint_is_a_command(tmp_path: Path) -> None:
    """Its options exist and go together."""
    *_, job = yaml.safe_load_all((INFRA / "rayjob.yaml").read_text())
    (tmp_path / "prompts.txt").write_text("The sky is\n")
    program, *arguments = job["spec"]["entrypoint"].replace("/corpus", str(tmp_path)).replace("/store", str(tmp_path)).split()
    assert program == "raylens"
    done = raylens_command(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr


def test_ray_up_takes_the_cluster_file() -> None:
    """By the autoscaler's own check."""
    validate_config(prepare_config(yaml.safe_load((INFRA / "cluster.yaml").read_text())))


class Composed:
    """The services of compose.yaml as plain processes: its commands and health checks, here with this machine's paths.

    Args:
        folder: for secrets, store and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
        subprocess.run([INFRA / "make-secrets.sh", folder / "secrets", "127.0.0.1"], check=True, timeout=HUNG)
        (folder / "store").mkdir()
        self._redis, self._ray = str(free_port()), str(free_port())
        url = (folder / "secrets" / "redis.env").read_text().splitlines()[0].partition("=")[2]
        self.env = {name: value for name, value in TOOLS.items() if not name.startswith("RAY_")} | {
            name: self._here("head", value) for name, value in self.services["head"]["environment"].items()
        }
        self.env |= {f"RAYLENS_{name}_REDIS": self._here("valkey", url) for name in ("RUN", "WRITER", "STATUS")}
        self.env["RAY_USAGE_STATS_ENABLED"] = "0"

    def _here(self, service: str, word: str) -> str:
        port = self._redis if service == "valkey" else self._ray
        for there, here in (("/run/secrets", str(self.folder / "secrets")), ("/store", str(self.folder / "store")),
                            ("/etc/redis", str(INFRA)), ("valkey-server", "redis-server"), ("valkey-cli", f"redis-cli -p {port}"),
                            ("head:", "127.0.0.1:"), ("6379", port), ("$$", "$")):  # fmt: skip
            word = word.replace(there, here)
        return word

    def command(self, service: str, *more: str) -> list[str]:
        """What the service's container runs."""
        return [self._here(service, word) for word in self.services[service]["command"]] + list(more)

    def healthy(self, service: str) -> Callable[[], bool]:
        """Its health check."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        command = [self._here(service, word) for word in words]
        command = ["sh", "-c", *command] if kind == "CMD-SHELL" else command
        return lambda: subprocess.run(command, env=self.env, capture_output=True, timeout=HUNG, check=False).returncode == 0


def test_composed_services_do_a_run(tmp_path: Path, tiny: Path) -> None:
    """Server, head, worker and writer come up by their own commands and health checks, and a run through them is stored."""
    composed = Composed(tmp_path)
    with ExitStack() as stack:
        for service in ("valkey", "head", "worker", "writer"):
            command = composed.command(service, *(["--num-cpus", "1"] if service == "worker" else []))
            assert not composed.healthy(service)() or service in {"worker", "writer"}, "they ask the head and the server"
            stack.enter_context(started(tmp_path / f"{service}.log", command, composed.env))
            wait_until(composed.healthy(service), f"{service} is healthy")
        store = tmp_path / "store"
        run = ["run", "--text", "The sky is", "--model", str(tiny), "--store", str(store), "--writer", "external", "--name", "r"]
        done = raylens_command(*run, env=composed.env)
        logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert done.returncode == 0, done.stderr + logs
        status = raylens_command("status", str(store), "r", env=composed.env)
        assert "r: complete" in status.stdout, status.stderr
    assert len(raylens.open(store)["r"]) == 1


SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


def test_slurm_script_does_a_run_on_one_node(tmp_path: Path, tiny: Path) -> None:
    """As Slurm would start it, on an allocation of this machine; srun starts the command here."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    env = {name: value for name, value in TOOLS.items() if not name.startswith("RAY_")}
    env |= {"PATH": f"{programs}{os.pathsep}{TOOLS['PATH']}", "RAYLENS_SHARED": str(tmp_path)}
    env |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "1"}
    env |= {"RAYLENS_PORT": str(free_port()), "RAYLENS_RAY_PORT": str(free_port())}
    run = ["--text", "The sky is", "--model", str(tiny), "--store", "store", "--name", "r"]
    command = ["bash", str(INFRA / "slurm.sbatch"), *run]
    with started(tmp_path / "log", command, env) as job:
        assert job.wait(timeout=HUNG) == 0, (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("raylens-job.*")), "the secrets are gone"
    assert len(raylens.open(tmp_path / "store")["r"]) == 1
