"""Runs the steps of a GitHub Actions workflow in a directory, as far as the example's workflow needs it:
``run:`` steps in bash as the runner does it, ``if:`` conditions, ``$GITHUB_ENV``, outcomes of steps. Steps
with ``uses:`` are GitHub's, and only noted.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass
class Job:
    """A job that ran: the outcome of each step by its id or name, what it printed, and which actions it
    used."""

    outcomes: dict[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    printed: str = ""

    @property
    def succeeded(self) -> bool:
        return "failure" not in self.outcomes.values()


def run_job(workflow: Path, job: str, directory: Path, path: str, github: dict[str, str]) -> Job:
    """Run a job; ``github`` are the values of the ``github`` context, such as ``event_name``."""
    parsed = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    files = {name: directory / f".{name.lower()}" for name in ("GITHUB_ENV", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("", encoding="utf-8")
    variables = {"PATH": path, "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    variables |= {name: str(file) for name, file in files.items()} | parsed.get("env", {})
    done = Job()
    for step in parsed["jobs"][job]["steps"]:
        name = step.get("id") or step.get("name") or step["uses"]
        if not holds(step.get("if", "success()"), done, github):
            done.outcomes[name] = "skipped"
            continue
        if "uses" in step:
            done.used.append(step["uses"])
            done.outcomes[name] = "success"
            continue
        values = {key: _filled(str(value), github) for key, value in step.get("env", {}).items()}
        ended = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", _filled(step["run"], github)],
            cwd=directory,
            env={**variables, **values},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        done.printed += ended.stdout
        done.outcomes[name] = "success" if ended.returncode == 0 else "failure"
        lines = files["GITHUB_ENV"].read_text(encoding="utf-8").splitlines()
        variables |= dict(line.split("=", 1) for line in lines)
    return done


def holds(condition: str, done: Job, github: dict[str, str]) -> bool:
    """Whether a step runs. Without one of the four status functions it runs only after success."""
    terms = [term.strip() for term in condition.split("&&")]
    if not any(term in ("always()", "failure()", "success()", "cancelled()") for term in terms):
        terms.append("success()")
    return all(_term(term, done, github) for term in terms)


def _term(term: str, done: Job, github: dict[str, str]) -> bool:
    if term in ("always()", "success()", "failure()"):
        return {"always()": True, "success()": done.succeeded, "failure()": not done.succeeded}[term]
    match = re.fullmatch(r"(?:steps\.(\w+)\.outcome|github\.(\w+)) == '(\w+)'", term)
    if match is None:
        raise ValueError(f"this runner does not know the condition {term!r}")
    step, key, wanted = match.groups()
    return (done.outcomes[step] if step else github[key]) == wanted


def _filled(text: str, github: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        found: Any = github[match[1].removeprefix("github.")]
        return str(found)

    return _EXPRESSION.sub(value, text)
