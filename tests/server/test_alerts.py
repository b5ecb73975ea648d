"""The rule file that is shipped, by Prometheus's own tool, where it is installed (Debian: `apt-get install prometheus`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ALERTS = Path(__file__).parents[2] / "docs" / "alerts.yml"

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

M, IN = '{model="m"}', '{model="m",operation="o",user="u",code='
CASES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    # alert, series that raise it over an hour, and its labels
    ("ProbewireDown", {'up{job="probewire",instance="box"}': "0x60"}, {"job": "probewire", "instance": "box"}),
    ("ProbewireModelDown", {f"probewire_model_up{M}": "0x60"}, {"model": "m"}),
    ("ProbewireWorkerDies", {f"probewire_worker_restarts_total{M}": "0x40 1 2 3 4x17"}, {"model": "m"}),
    ("ProbewireInternalErrors", {f'probewire_requests_total{IN}"INTERNAL"}}': "0x55 1x5"}, {"model": "m", "operation": "o"}),
    (
        "ProbewireSlowFirstToken",
        {f'probewire_first_token_seconds_bucket{{model="m",le="{le}"}}': f"0+{n}x60" for le, n in (("30", 1), ("60", 9), ("+Inf", 9))},
        {"model": "m"},
    ),
    ("ProbewireQueueNeverEmpty", {f"probewire_waiting_inputs{M}": "1x60"}, {"model": "m"}),
    ("ProbewireRequestsTurnedAway", {f'probewire_requests_total{IN}"RESOURCE_EXHAUSTED"}}': "0+2x60"}, {"model": "m"}),
    ("ProbewireCacheFull", {f"probewire_cache_used_tokens{M}": "95x60", f"probewire_cache_tokens{M}": "100x60"}, {"model": "m"}),
    ("ProbewireReaderHasStopped", {f"probewire_held_generations{M}": "1x60"}, {"model": "m"}),
    ("ProbewireKeysAreGuessed", {'probewire_refused_keys_total{face="grpc",key="wrong"}': "0+2x60"}, {"face": "grpc"}),
]  # fmt: skip
CALM = {
    'up{job="probewire",instance="box"}': "1x60",
    f"probewire_model_up{M}": "1x60",
    f"probewire_worker_restarts_total{M}": "5x60",
    f'probewire_requests_total{IN}"INTERNAL"}}': "3x60",
    f'probewire_requests_total{IN}"OK"}}': "0+100x60",
    f"probewire_waiting_inputs{M}": "3x29 0 3x30",
    f"probewire_cache_used_tokens{M}": "100x29 10x30",
    f"probewire_cache_tokens{M}": "100x60",
    'probewire_cache_used_tokens{model="no engine"}': "0x60",
    'probewire_cache_tokens{model="no engine"}': "0x60",
    f"probewire_held_generations{M}": "1x50 0x10",
    'probewire_refused_keys_total{face="grpc",key="none"}': "0+9x60",
}


def promtool(*args: str) -> None:
    done = subprocess.run(["promtool", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def checked(folder: Path, series: dict[str, str], expected: dict[str, list[dict[str, Any]]]) -> None:
    """Whether the alerts are as expected after an hour; JSON is YAML as well."""
    alerts = [{"eval_time": "60m", "alertname": name, "exp_alerts": found} for name, found in expected.items()]
    test = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": alerts,
            }
        ],
    }
    file = folder / "test.json"
    file.write_text(json.dumps(test))
    promtool("test", "rules", str(file))


def rules() -> list[str]:
    return [line.split(": ")[1] for line in ALERTS.read_text().splitlines() if "- alert:" in line]


def summary_of(alert: str, labels: dict[str, str]) -> str:
    text = ALERTS.read_text().partition(f"- alert: {alert}\n")[2].partition('summary: "')[2].partition('"\n')[0]
    for name, value in labels.items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", value)
    return text


def test_the_file_is_a_rule_file() -> None:
    promtool("check", "rules", str(ALERTS))


@pytest.mark.parametrize(("alert", "series", "labels"), CASES, ids=[case[0] for case in CASES])
def test_it_fires(alert: str, series: dict[str, str], labels: dict[str, str], tmp_path: Path) -> None:
    told = {"exp_labels": labels, "exp_annotations": {"summary": summary_of(alert, labels)}}
    checked(tmp_path, series, {alert: [told]})


def test_none_fires_on_a_busy_healthy_box(tmp_path: Path) -> None:
    assert set(rules()) == {case[0] for case in CASES}
    checked(tmp_path, CALM, {alert: [] for alert in rules()})
