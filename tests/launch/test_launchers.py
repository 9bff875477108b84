"""The launchers: what they would run, and what they refuse."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
QUICKSTART = "experiments/gpt/quickstart.py"
NEEDED = {
    "local": [],
    "slurm": [],
    "gke": ["--topology", "v5e:4x4", "--image", "registry/headway:1", "--bucket", "gs://runs-of-mine"],
    "tpu-vm": ["--topology", "v5e:4x4", "--zone", "us-west4-a", "--project", "p", "--bucket", "gs://runs-of-mine"],
    "skypilot": ["--accelerators", "H100:8", "--nodes", "2", "--bucket", "gs://runs-of-mine"],
}  # fmt: skip


def start(launcher, *arguments, path=None):
    """Runs a launcher in this process; returns its exit code."""
    before = sys.argv, sys.path[:], os.environ["PATH"]
    sys.argv = [str(LAUNCH / launcher), *map(str, arguments)]
    sys.path.insert(0, str(LAUNCH))
    os.environ["PATH"] = before[2] if path is None else str(path)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        return error.code or 0
    finally:
        sys.argv, sys.path[:], os.environ["PATH"] = before
    raise AssertionError("a launcher ends its process")


def dry(capfd, launcher, *more):
    code = start(launcher, QUICKSTART, *NEEDED[launcher], "--dry-run", *more)
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("launcher", NEEDED)
def test_a_dry_run_prints_a_script_with_experiment_overrides_and_run_directory(capfd, launcher):
    script = dry(capfd, launcher, "--model.kv-heads", "1", "--steps", "7", "--workdir", "/runs/a b")
    text = re.sub(r"['\"]", "", script)
    train = r"train \S*experiments/gpt/quickstart\.py --workdir /runs/a b --model.kv-heads 1 --steps 7\b"
    assert re.search(train, text), text
    assert "@{" not in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("launcher", NEEDED)
def test_scripts_satisfy_shellcheck(capfd, launcher):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck is not None  # the extra "test" has it
    script = dry(capfd, launcher)
    command = [shellcheck, "--shell=bash", "--severity=warning", "-"]
    done = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def heredoc(script, name):
    return re.search(rf"<<'{name}'\n(.*?)\n{name}\n", script, re.DOTALL)[1]


def test_the_batch_job_of_slurm_is_a_script_that_goes_back_into_the_queue(capfd):
    script = dry(capfd, "slurm", "--nodes", "2", "--partition", "gpu")
    batch = heredoc(script, "SBATCH")
    directives = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in batch.splitlines()
        if "#SBATCH" in line
    )
    assert directives["nodes"] == "2" and directives["partition"] == "gpu"
    assert directives["ntasks-per-node"] == directives["gpus-per-node"] == "8"
    assert directives["signal"] == "TERM@120" and directives["open-mode"] == "append"
    assert "requeue" in directives and "account" not in directives
    # srun, scontrol: what they are told, and what comes of each exit code.
    fakes = 'srun() { return "$CODE"; }; scontrol() { echo "$@"; }; export SLURM_JOB_ID=9\n'
    again = "requeue 9\n"
    for code, restarts, expected in (
        *((0, 0, ""), (1, 0, ""), (2, 0, "")),
        *((3, 0, again), (4, 0, again), (137, 99, again), (3, 100, "")),
    ):
        environment = {**os.environ, "CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
        command = ["bash", "-c", fakes + batch]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, expected, "")


def test_the_manifest_of_gke_is_a_job_set_of_the_slices_hosts(capfd):
    script = dry(capfd, "gke", "--slices", "2", "--spot", "--steps", "7")
    manifest = yaml.safe_load(heredoc(script, "MANIFEST"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "gpt-quickstart"
    [job] = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4  # sixteen chips, four to a host
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    [container] = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert shlex.split(container["args"][0]) == [
        *("exec", "headway", "train", "/headway/experiments/gpt/quickstart.py"),
        *("--workdir", "gs://runs-of-mine/runs/gpt-quickstart", "--steps", "7"),
    ]
    assert container["env"] == [
        {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://runs-of-mine/compilation-cache"}
    ]
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [1, 2]  # what starting again would not mend
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": spec}
    kubernetes_validate.validate(job, "1.30", strict=True)


def test_the_manifest_of_skypilot_names_nodes_bucket_and_the_codes_to_recover_from(capfd):
    manifest = yaml.safe_load(heredoc(dry(capfd, "skypilot", "--spot"), "MANIFEST"))
    assert manifest["num_nodes"] == 2 and manifest["workdir"] == str(ROOT)
    assert manifest["resources"]["accelerators"] == "H100:8" and manifest["resources"]["use_spot"] is True
    assert manifest["resources"]["job_recovery"]["recover_on_exit_codes"] == [3, 4, 134, 137, 143]
    assert manifest["file_mounts"] == {"/bucket": {"source": "gs://runs-of-mine", "mode": "MOUNT"}}
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=manifest[part], text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("topology", "found"),
    [
        ("v5e:2x4", ("--accelerator-type=v5litepod-8", 1, 8)),
        ("v5e:1x1", ("--accelerator-type=v5litepod-1", 1, 1)),
        ("v6e:16x16", ("--accelerator-type=v6e-256", 64, 4)),
        ("v5p:2x2x2", ("--type=v5p --topology=2x2x2", 2, 4)),
        ("v4:2x2x1", ("--type=v4 --topology=2x2x1", 1, 4)),
    ],
)
def test_slices_by_the_names_of_gcloud(monkeypatch, topology, found):
    monkeypatch.syspath_prepend(LAUNCH)
    import tpu

    place = tpu.slice_of(topology)
    assert (place.gcloud, place.hosts, place.chips_per_host) == found


@pytest.mark.parametrize(
    ("launcher", "arguments", "line"),
    [
        ("local", ["--processes", "0"], "--processes 0: at least 1"),
        ("local", ["--procesess", "2"], "unknown option --procesess; did you mean --processes?"),
        ("local", ["--model.layer", "2"], "unknown option --model.layer; did you mean --model.layers?"),
        ("local", ["--watchdog", "soon"], "--watchdog: expected a number"),
        ("local", ["--name", "A b"], "--name 'A b': a letter, then letters"),
        ("slurm", ["--nodes", "0"], "--nodes 0: at least 1"),
        ("gke", [], "needs --topology CHIP:AxB, such as v5e:4x4; chips: v4, v5e, v5p, v6e"),
        ("gke", ["--topology", "v5p:4x4"], "slices of v5p have 3 sides: v5p:4x4x4"),
        ("gke", ["--topology", "v5e:4x4"], "needs --image"),
        (
            "gke",
            [*NEEDED["gke"][:4], "--bucket", "runs"],
            "needs --bucket gs://NAME for the runs, found 'ru",
        ),
        ("tpu-vm", [*NEEDED["tpu-vm"][:2], *NEEDED["tpu-vm"][-2:]], "needs --zone"),
        ("skypilot", [], "needs --accelerators"),
    ],
)
def test_a_mistake_is_one_line(capfd, launcher, arguments, line):
    assert start(launcher, QUICKSTART, *arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("headway: ") and err.count("\n") == 1 and line in err


@pytest.mark.parametrize(
    ("launcher", "needs"),
    [("slurm", "sbatch"), ("gke", "kubectl"), ("tpu-vm", "gcloud"), ("skypilot", "sky")],
)
def test_a_missing_command_is_one_line_that_says_how_to_get_it(capfd, tmp_path, launcher, needs):
    assert start(launcher, QUICKSTART, *NEEDED[launcher], path=tmp_path) == 2
    _, err = capfd.readouterr()
    assert err.startswith(f"headway: {needs} is not installed: ") and err.count("\n") == 1


def test_an_experiment_outside_of_the_source_tree_is_refused_where_the_job_gets_a_copy(capfd, tmp_path):
    shutil.copy(QUICKSTART, tmp_path / "mine.py")
    assert start("gke", tmp_path / "mine.py", *NEEDED["gke"], "--dry-run") == 2
    assert "mine.py lies outside of" in capfd.readouterr().err
    assert start("slurm", tmp_path / "mine.py", "--dry-run") == 0


def fake(folder, name, script):
    (folder / name).write_text(f"#!/bin/bash\n{script}")
    (folder / name).chmod(0o755)


def test_slurm_submits_once_and_follows_what_is_there(capfd, tmp_path, monkeypatch):
    # squeue knows the job once sbatch was called, until it has been asked three times.
    fake(tmp_path, "squeue", f"[[ -e {tmp_path}/job ]] && echo 17; rm -f {tmp_path}/job\n")
    fake(tmp_path, "sbatch", f"cat >{tmp_path}/batch; touch {tmp_path}/submitted; echo 17\n")
    fake(tmp_path, "sleep", "true\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    monkeypatch.chdir(tmp_path)
    experiment = ROOT / QUICKSTART
    assert start("slurm", experiment, path=path) == 0
    assert "submitted job 17 (gpt-quickstart)" in capfd.readouterr().err
    assert (tmp_path / "batch").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=gpt-quickstart\n")
    (tmp_path / "submitted").unlink()
    (tmp_path / "job").touch()
    assert start("slurm", experiment, path=path) == 0
    assert "job 17 (gpt-quickstart) is there already" in capfd.readouterr().err
    assert not (tmp_path / "submitted").exists()


GCLOUD = """
echo "$3 $4" >>"$FOLDER/calls"
case "$3 $4" in
"queued-resources describe") cat "$FOLDER/state" 2>/dev/null ;;
"queued-resources create") echo ACTIVE >"$FOLDER/state" ;;
"queued-resources delete") rm "$FOLDER/state" ;;
"tpu-vm scp") cp "$5" "$HOME/headway.tar.gz" ;;
"tpu-vm ssh") cd "$HOME"; for word; do case $word in --command=*) exec bash -c "${word#--command=}" ;; esac; done ;;
esac
"""  # noqa: E501
HEADWAY = """
printf '%s|' "$@" >>"$FOLDER/trained"; echo >>"$FOLDER/trained"
code=$(head -n 1 "$FOLDER/codes") && sed -i 1d "$FOLDER/codes"
[[ $code == 4 ]] && echo SUSPENDED >"$FOLDER/state"  # preempted
exit "$code"
"""


@pytest.mark.parametrize(
    ("codes", "expected", "calls"),
    [
        # Lost with the slice, which makes room for another; then done, and given back.
        ("4 0", 0, ["create", "scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "delete"]),
        ("3 0", 0, ["create", "scp", "ssh", "ssh", "scp", "ssh", "ssh", "delete"]),
        ("2", 2, ["create", "scp", "ssh", "ssh"]),  # kept, for the mended command
    ],
)
def test_a_slice_is_obtained_set_up_used_and_given_back(capfd, tmp_path, monkeypatch, codes, expected, calls):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    (tmp_path / "home").mkdir()
    (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
    for name, script in (("gcloud", GCLOUD), ("headway", HEADWAY)):
        fake(tmp_path, name, script)
    for name in ("uv", "curl", "sleep"):
        fake(tmp_path, name, "true\n")
    arguments = (QUICKSTART, *NEEDED["tpu-vm"], "--workdir", "gs://runs/a b")
    assert start("tpu-vm", *arguments, path=f"{tmp_path}:{os.environ['PATH']}") == expected
    found = [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call for call in found if call != "describe"] == calls
    trained = (tmp_path / "trained").read_text().splitlines()
    assert trained == ["train|experiments/gpt/quickstart.py|--workdir|gs://runs/a b|"] * len(codes.split())
    assert (tmp_path / "home" / "headway" / QUICKSTART).exists()  # the tree as it is here
    assert ("The slice is kept" in capfd.readouterr().err) == (expected == 2)


def test_the_verdict_of_several_processes(monkeypatch):
    monkeypatch.syspath_prepend(LAUNCH)
    verdict = runpy.run_path(str(LAUNCH / "local"))["verdict"]
    cases = {(0, 0): 0, (3, 3): 3, (4, -9): 4, (-9, 4): 4, (134, 2): 2, (4, 1): 1, (0, 4): 4, (0, 3): 4}
    assert {codes: verdict(codes) for codes in cases} == cases
