"""The templates: valid as their platforms see them, and in step with what they deploy."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from pgcontext.operations import OPERATIONS
from pgcontext.settings import Settings
from scripts import build_lambda_bundle as script

ROOT: Final = Path(__file__).parents[2]
SAM: Final = ROOT / "handlers" / "template.yaml"


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms: what a tag stands on is what matters here."""


def _tagged(loader: Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


Loader.add_multi_constructor("!", _tagged)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    """The SAM template."""
    loaded: dict[str, Any] = yaml.load(SAM.read_text("utf-8"), Loader)  # noqa: S506 (a SafeLoader)
    return loaded


def functions(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def variables(template: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = template["Globals"]["Function"]["Environment"]["Variables"]
    own: dict[str, Any] = function.get("Environment", {}).get("Variables", {})
    return common | own


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("cfn-lint")
    return subprocess.run([program, "--", path], capture_output=True, text=True, check=False)


def test_cloudformation_takes_the_template() -> None:
    """cfn-lint finds nothing to say about it."""
    done = lint(SAM)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    Type: AWS::SQS::Queue", "    Type: AWS::SQS::Qeue"),
        ("!GetAtt FailedAppends.Arn", "!GetAtt FailedAppend.Arn"),
        ("RetentionInDays: !Ref LogDays", "RetentionInDays: !Ref LogDay"),
        ("      Threshold: 0", "      Treshold: 0"),
    ],
)
def test_a_mistake_in_the_template_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    """The check sees a misspelt type, attribute, parameter and property."""
    broken = tmp_path / "template.yaml"
    text = SAM.read_text("utf-8")
    assert right in text
    broken.write_text(text.replace(right, wrong), "utf-8")
    assert lint(broken).returncode != 0


def test_each_function_names_a_handler_that_is_in_its_bundle(template: dict[str, Any]) -> None:
    """The handler exists, and the bundle it is deployed from holds its file."""
    for name, function in functions(template).items():
        package, module, attribute = function["Handler"].split(".")
        bundle = Path(function["CodeUri"]).stem
        assert function["CodeUri"] == f"../build/lambda/{bundle}.zip"
        assert package == "handlers"
        assert f"{module}.py" in script.HANDLERS[bundle], name
        source = (ROOT / "handlers" / f"{module}.py").read_text("utf-8")
        assert re.search(rf"(?m)^(def {attribute}\(|{attribute} = )", source), name


def test_each_variable_is_a_setting_and_each_secret_a_reference(template: dict[str, Any]) -> None:
    """What the functions are given is read by the settings; a URL stands in no template."""
    known = set(re.findall(r'"((?:PGCONTEXT|DATABASE)_[A-Z_]+)"', _source("settings")))
    for function in functions(template).values():
        given = variables(template, function)
        assert given.keys() <= known
        urls = [value for name, value in given.items() if name.startswith("DATABASE_URL")]
        assert urls
        assert all(str(url).startswith("{{resolve:secretsmanager:") for url in urls)


def _source(module: str) -> str:
    loaded = importlib.import_module(f"pgcontext.{module}")
    assert loaded.__file__ is not None
    return Path(loaded.__file__).read_text("utf-8")


def test_the_templates_defaults_are_the_projects(template: dict[str, Any]) -> None:
    """The bundle is built for what is deployed, and a parameter's default is the setting's."""
    parameters = template["Parameters"]
    assert parameters["Runtime"]["Default"] == f"python{script.PYTHON_DEFAULT}"
    assert parameters["Architecture"]["Default"] == "arm64"
    settings = Settings.from_env({"DATABASE_URL": "postgresql://db.example.com/app"})
    assert parameters["Dimensions"]["Default"] == settings.dimensions
    assert parameters["PurgeDays"]["Default"] == settings.purge_days
    assert parameters["Auth"]["Default"] == settings.auth


def test_a_message_is_not_seen_again_while_it_is_worked_on(template: dict[str, Any]) -> None:
    """The queue hides a batch for six times the function's time, and failures are put aside."""
    queue = template["Resources"]["AppendQueue"]["Properties"]
    append = functions(template)["Append"]
    assert queue["VisibilityTimeout"] >= 6 * append["Timeout"]
    assert queue["RedrivePolicy"]["maxReceiveCount"] >= 3
    assert append["Events"]["Queue"]["Properties"]["FunctionResponseTypes"] == [
        "ReportBatchItemFailures"
    ]
    assert functions(template)["Store"]["Timeout"] < 30  # API Gateway's own patience


def test_vercel_serves_the_application_at_every_path() -> None:
    """vercel.json and pyproject.toml name a file and a variable that exist, and what it needs."""
    config = json.loads((ROOT / "vercel.json").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    module, _, name = project["tool"]["vercel"]["entrypoint"].partition(":")
    assert hasattr(importlib.import_module(module), name)
    assert "'.[vercel]'" in config["installCommand"]
    assert "vercel" in project["project"]["optional-dependencies"]
    assert config["framework"] == "python"
    paths = {route.path for route in importlib.import_module(module).app.routes}
    assert {cron["path"] for cron in config["crons"]} <= paths


def test_compose_starts_a_server_and_a_pooler_with_health_checks() -> None:
    """Each service has an image and a health check, and listens on this machine only."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    assert {"postgres", "pgbouncer"} <= services.keys()
    for service in services.values():
        assert "image" in service
        assert service["healthcheck"]["test"]
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
    pooler = services["pgbouncer"]
    assert pooler["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "pool_mode = transaction" in compose["configs"]["pgbouncer.ini"]["content"]


def test_the_pages_name_what_is_deployed(template: dict[str, Any]) -> None:
    """Each parameter, output and operation is on the page, and each path of a schedule."""
    page = (ROOT / "docs" / "deploy-lambda.md").read_text("utf-8")
    names = {*template["Parameters"], *OPERATIONS, "MigrateFunction", "CallPolicy", "QueueUrl"}
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert {"MigrateFunction", "CallPolicy", "QueueUrl"} <= template["Outputs"].keys()
    config = json.loads((ROOT / "vercel.json").read_text("utf-8"))
    page = (ROOT / "docs" / "deploy-vercel.md").read_text("utf-8")
    assert all(f"`{cron['path']}`" in page for cron in config["crons"])
