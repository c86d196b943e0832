"""The commands about conversations: list, show, tree, search, fork, delete, restore."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

import pytest

from pgcontext import limits
from tests.support.cli import FERRY, SAMPLE, Cli, jsonl

pytestmark = pytest.mark.usefixtures("sampled")
SHORT = FERRY[-8:]
OTHER_TENANT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on the test's database."""
    return Cli(monkeypatch, database_url)


@pytest.fixture
def sampled(cli: Cli) -> None:
    """Bring the sample conversations in."""
    cli.ok("import", SAMPLE)


def test_list_shows_the_newest_first_and_pages_by_cursor(cli: Cli) -> None:
    """A page says how to go on, and all pages together show each context once."""
    seen: list[str] = []
    arguments: list[str] = []
    while True:
        page = cli.json("list", "--limit", 3, *arguments)
        seen += [context["id"] for context in page["items"]]
        if page["next_cursor"] is None:
            break
        assert page["next_cursor"] in cli.ok("list", "--limit", 3, *arguments).err
        arguments = ["--cursor", page["next_cursor"]]
    assert len(seen) == len(set(seen)) == 8
    assert seen == [context["id"] for context in cli.json("list")["items"]]


def test_list_fits_80_columns_whatever_the_names_are(cli: Cli, tmp_path: Any) -> None:
    """Long names are cut, wide characters are counted as wide."""
    cli.ok("import", jsonl(tmp_path / "a", {"name": "長い名前" * 40, "id": "x", "messages": []}))
    out = cli.ok("list").out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "長い名前" in out
    assert "…" in out


def test_list_filters_by_metadata_and_leaves_deleted_ones_out_unless_asked(cli: Cli) -> None:
    """--where matches text and JSON values; --deleted shows what is deleted, as deleted."""
    assert [c["name"] for c in cli.json("list", "--where", "product=Velo Nord")["items"]] == [
        "A bicycle with one pedal"
    ]
    assert [c["name"] for c in cli.json("list", "--where", "guests=40")["items"]] == [
        "Forty guests, eleven allergies"
    ]
    cli.ok("delete", FERRY)
    assert FERRY not in cli.ok("list", "--json").out
    assert FERRY in cli.ok("list", "--json", "--deleted").out
    assert re.search(r"Ferry to Gullholm .* deleted", cli.ok("list", "--deleted").out)


def test_an_empty_list_says_how_to_begin(cli: Cli) -> None:
    """Another tenant has nothing, and is told so on stderr; stdout stays empty."""
    result = cli.ok("list", "--tenant", OTHER_TENANT)
    assert "pgcontext import" in result.err
    assert result.out.strip() == ""
    assert cli.json("list", "--tenant", OTHER_TENANT) == {"items": [], "next_cursor": None}


def test_show_reads_like_a_conversation(cli: Cli) -> None:
    """Versions, roles, text, calls as code, results by their tool's name."""
    out = cli.ok("show", FERRY).out
    assert "Ferry to Gullholm" in out
    assert FERRY in out
    assert '-> find_sailings(to="Gullholm"' in out
    assert re.search(r"^ 4 find_sailings \[", out, re.MULTILINE)
    assert re.search(r"^20 assistant +Booked: GULL-4471", out, re.MULTILINE)
    assert all(len(line) <= 80 for line in out.splitlines())


def test_show_takes_a_limit_a_version_and_a_window(cli: Cli) -> None:
    """The newest few; as far as a version; what fits a budget, with what it holds."""
    assert [m["version"] for m in cli.json("show", FERRY, "-n", 2)["messages"]] == [19, 20]
    assert [m["version"] for m in cli.json("show", FERRY, "-n", 2, "--at", 5)["messages"]] == [4, 5]
    window = cli.json("show", FERRY, "--window", 300)
    assert window["messages"][0]["role"] == "system"
    assert window["total_tokens"] == sum(m["token_count"] for m in window["messages"]) <= 300
    assert window["truncated"] is True
    text = cli.ok("show", FERRY, "--window", 300).out
    assert f"{window['total_tokens']} tokens; older messages did not fit" in text


def test_show_marks_where_a_fork_begins(cli: Cli) -> None:
    """What a fork inherits stands above a line, what it wrote below."""
    fork = cli.json("fork", FERRY, "--at", 2)
    line = {"pgcontext": 1, "id": fork["id"], "parent": FERRY, "fork_version": 2}
    assert cli.process(
        "import", "-", stdin=_bytes(line | {"messages": [{"role": "user", "content": "Mine."}]})
    ).out.startswith("1 conversation (1 continued), 1 message")
    out = cli.ok("show", fork["id"]).out
    assert out.index("version 2") < out.index("forked here, at version 2") < out.index("Mine.")


def test_a_context_is_named_by_the_last_digits_of_its_id(cli: Cli) -> None:
    """As tables show them; too few or ambiguous or unknown ones are refused in a sentence."""
    assert cli.json("show", SHORT)["context"]["id"] == FERRY
    assert cli.json("show", SHORT.upper()[-4:])["context"]["id"] == FERRY
    for word, code in (("add", 2), ("zzzz", 2), ("00000000", 3), (str(UUID(int=5)), 3)):
        result = cli("show", word)
        assert (result.code, result.out) == (code, "")
        assert result.err.startswith("pgcontext: ")
    twin = f"ffffffff-48e4-5ebf-90bf-{FERRY[-12:]}"
    cli.process("import", "-", stdin=_bytes({"id": twin, "messages": []}))
    result = cli("show", SHORT)
    assert result.code == 2
    assert "more of its digits" in result.err


def test_fork_delete_and_restore_do_what_they_say(cli: Cli) -> None:
    """A fork from the middle; messages and contexts hidden and shown again."""
    fork = cli.json("fork", SHORT, "--at", 10, "--name", "Waves")
    assert (fork["parent_id"], fork["fork_version"], fork["name"]) == (FERRY, 10, "Waves")

    hidden = cli.json("delete", FERRY, 4, "6-7")
    assert [(m["version"], m["deleted_at"] is not None) for m in hidden] == [
        (4, True),
        (6, True),
        (7, True),
    ]
    assert cli.json("show", FERRY)["context"]["message_count"] == 17
    assert cli.json("show", fork["id"])["context"]["message_count"] == 10
    out = cli.ok("show", FERRY, "--deleted").out
    assert "4 find_sailings" in out
    assert cli.ok("restore", FERRY, "4-4", 6, 7).out == f"Restored versions 4, 6, 7 of {FERRY}.\n"
    assert cli.json("show", FERRY)["context"]["message_count"] == 20

    assert cli.ok("delete", SHORT).out == f"Deleted {FERRY}.\n"
    assert cli("show", FERRY).code == 3
    assert cli.ok("restore", SHORT).out == f"Restored {FERRY}.\n"


def test_delete_of_what_is_not_there_changes_nothing(cli: Cli) -> None:
    """One version of several is missing: exit code 3, and the others stay."""
    result = cli("delete", FERRY, 19, 21)
    assert (result.code, result.out) == (3, "")
    assert "21" in result.err
    assert cli.json("show", FERRY)["context"]["message_count"] == 20
    for words in (["x"], ["0"], ["7-5"], ["1-99999999"], ["²"]):
        assert cli("delete", FERRY, *words).code == 2


def test_tree_draws_forks_below_their_parents(cli: Cli) -> None:
    """Forks of forks, with the version each continues from; siblings in the order of making."""
    first = cli.json("fork", FERRY, "--at", 10, "--name", "First")
    cli.json("fork", FERRY, "--name", "Second")
    cli.json("fork", first["id"], "--at", 4, "--name", "Third")
    lines = cli.ok("tree", SHORT).out.splitlines()
    assert [re.sub(r"  [0-9a-f]{8}  .*", "", line).rstrip() for line in lines] == [
        "Ferry to Gullholm",
        "├── at 10: First",
        "│   └── at 4: Third",
        "└── at 20: Second",
    ]
    [root] = cli.json("tree", first["id"])
    assert [fork["name"] for fork in root["forks"]] == ["First", "Second"]
    assert root["forks"][0]["forks"][0]["name"] == "Third"
    assert len(cli.json("tree")) == 8


@pytest.mark.parametrize("asked_for", ["root", "middle", "leaf"])
def test_tree_keeps_deleted_contexts_that_live_forks_need(cli: Cli, asked_for: str) -> None:
    """A deleted parent stays in the drawing while a fork of it lives, and a deleted leaf goes."""
    ids = {"root": FERRY}
    ids["middle"] = cli.json("fork", FERRY, "--at", 10, "--name", "Middle")["id"]
    ids["leaf"] = cli.json("fork", ids["middle"], "--name", "Leaf")["id"]
    gone = cli.json("fork", FERRY, "--name", "Gone")["id"]
    for context_id in (FERRY, ids["middle"], gone):
        cli.ok("delete", context_id)
    out = cli.ok("tree", ids[asked_for]).out
    assert [name in out for name in ("Ferry", "Middle", "Leaf", "Gone")] == [True] * 3 + [False]
    assert out.count("deleted") == 2
    assert "Gone" in cli.ok("tree", ids[asked_for], "--deleted").out
    assert "Gone" not in cli.ok("tree").out
    assert "Gone" in cli.ok("tree", "--deleted").out


def test_search_finds_marks_and_limits(cli: Cli) -> None:
    """Across contexts or in one; by role and metadata; with neighbours around the hit."""
    hits = cli.json("search", "hazelnut", "-n", 3)
    assert len(hits) == 3
    assert {hit["message"]["role"] for hit in cli.json("search", "hazelnut", "--role", "user")} == {
        "user"
    }
    assert cli.json("search", "hazelnut", "--context", SHORT) == []
    assert cli.json("search", "canoe", "--where", "product=Velo Nord") == []
    assert cli.json("search", "canoe", "--until", "2020-01-01") == []
    assert cli.json("search", "canoe", "--since", "2020-01-01T00:00+02:00") != []
    [hit] = cli.json("search", "pedals", "-n", 1, "--neighbors", 1)
    assert len(hit["neighbors"]) in {1, 2}
    out = cli.ok("search", "pedals", "-n", 1, "--neighbors", 1).out
    assert "A bicycle with one pedal" in out
    assert re.search(r"(?m)^    by text · text score 0\.\d{3} *$", out)
    assert re.search(r"(?m)^    > 6 user ", out)
    assert [line.split()[0] for line in out.splitlines()[2:] if line[6].isdigit()] == [
        "5",
        ">",
        "7",
    ]
    assert cli.ok("search", "xyzzy").err == "Nothing found.\n"


def test_bad_arguments_are_refused_in_one_sentence(cli: Cli) -> None:
    """Nothing is printed to stdout, one line to stderr, exit code 2."""
    for arguments in (
        ["search", " "],
        ["search", "x", "--since", "yesterday"],
        ["search", "x", "--role", "robot"],
        ["search", "x", "--where", "nothing"],
        ["search", "x", "--diversity", 2],
        ["search", "x", "--mode", "hybrid"],  # nothing embeds here
        ["list", "--limit", limits.LIST_CONTEXTS_MAX + 1],
        ["list", "--cursor", "abc"],
        ["show", FERRY, "--window", -1],
        ["show", FERRY, "--at", -1],
        ["fork", FERRY, "--at", 21],
    ):
        result = cli(*arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert result.err.startswith("pgcontext: "), arguments
        assert result.err.count("\n") == 1, result.err
        assert cli(*arguments, "--json").error["type"] in {
            "InvalidInputError",
            "LimitExceededError",
        }


def test_stored_text_cannot_steer_the_terminal(cli: Cli) -> None:
    """Control characters and markup in names and messages are shown, not obeyed."""
    evil = "\x1b[2J\x1b]0;gotcha\x07[red]x[/red]\u202e\x9b31m"
    line = {"id": "evil", "name": evil, "messages": [{"role": "user", "content": f"needle {evil}"}]}
    cli.process("import", "-", stdin=_bytes(line))
    context = cli.json("search", "needle")[0]["message"]["context_id"]
    for arguments in (["show", context], ["list"], ["tree"], ["search", "needle"]):
        out = cli.ok(*arguments).out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out), arguments
        assert "[red]x[/red]" in out, arguments


def test_another_tenant_sees_nothing(cli: Cli) -> None:
    """Each command with --tenant finds another tenant's context as little as none at all."""
    for arguments in (
        ["show", FERRY],
        ["tree", FERRY],
        ["fork", FERRY],
        ["delete", FERRY],
        ["restore", FERRY],
        ["search", "canoe", "--context", FERRY],
        ["export", FERRY],
    ):
        result = cli(*arguments, "--tenant", OTHER_TENANT)
        assert (result.code, result.out) == (3, ""), arguments
    assert cli.json("search", "canoe", "--tenant", OTHER_TENANT) == []


def _bytes(value: Any) -> bytes:
    return json.dumps(value).encode()
