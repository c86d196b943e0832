import gzip
import hashlib
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from pgcontext import tokens
from pgcontext.errors import ConfigError, InvalidInputError
from pgcontext.tokens import TiktokenTokenizer, Tokenizer, get_tokenizer

NAMES = ("o200k_base", "cl100k_base")
URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"

TEXTS = {
    "empty": "",
    "a space": " ",
    "prose": "It's 1999, and they'd WON'T-ed the   re-run.\n\n  Next\tparagraph… ",
    "windows line ends": "one\r\n\r\n  two\r\nthree \r\n",
    "code": "def f(x: int) -> str:\n    return f'{x!r:>10}'  # get_user_details\n\n\n",
    "json": '{"reservation_id": "HAT136", "cabin": null, "legs": [1, 2.50, -3e7]}',
    "special tokens": "<|endoftext|><|fim_prefix|> <|endofprompt|><|im_start|>user<|im_sep|>",
    "chinese": "今天天气很好，我们去公园散步吧。",  # noqa: RUF001
    "japanese": "吾輩は猫である。名前はまだ無い。",
    "korean": "안녕하세요, 세계! 오늘은 2026년입니다.",
    "arabic": "مرحبا بالعالم، كيف حالك؟",
    "hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☃️ 🤷🏻‍♀️",
    "combining": "e\u0301 a\u030a n\u0303 z\u0335\u0321\u0353",
    "controls": "\0\x01\x1b[31m\x1c\x1d\x1e\x1f\x7f\x85",
    "odd blanks": "a\u00a0b\u2003c\u2028d\u3000 \u200b e\x0b\x0cf",
    "contractions": "I'LL you'Re we'vE 's's'S don''t",
    "only newlines": "\n" * 1_000,
    "only blanks": " \t" * 5_000,
    "blanks and newlines": "  \n \t\n   \r\n x  \n  ",
    "long blanks inside": "a" + " " * 200_000 + "\u3000b",
    "long word": "x" * 20_000,
}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiktoken.Encoding]:
    """Make tiktoken's own encodings, from a cache directory that holds what it would download."""
    cache = tmp_path_factory.mktemp("tiktoken")
    for name in NAMES:
        packed = (tokens._DIRECTORY / f"{name}.tiktoken.gz").read_bytes()
        key = hashlib.sha1(URL.format(name).encode(), usedforsecurity=False).hexdigest()
        (cache / key).write_bytes(gzip.decompress(packed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        encodings = {name: tiktoken.get_encoding(name) for name in NAMES}
    return encodings.__getitem__


@pytest.fixture
def fresh_cache() -> object:
    """Forget the loaded vocabularies before and after a test that damages one."""
    tokens._load.cache_clear()
    yield None
    tokens._load.cache_clear()


def run(code: str) -> str:
    """Run `code` in a Python of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_count_equals_tiktoken(
    name: str, text: str, official: Callable[[str], tiktoken.Encoding]
) -> None:
    """Every kind of text counts exactly as tiktoken counts it, special tokens as text."""
    assert get_tokenizer(name).count(text) == len(official(name).encode_ordinary(text))


@pytest.mark.parametrize("name", NAMES)
def test_count_of_a_megabyte_equals_tiktoken(
    name: str, official: Callable[[str], tiktoken.Encoding]
) -> None:
    """A text of a megabyte, of all kinds mixed, counts exactly too."""
    mixed = random.Random(7)
    kinds = [text for text in TEXTS.values() if len(text) < 1_000]
    text = ""
    while len(text.encode()) < 1_000_000:
        text += "".join(mixed.choices(kinds, k=200))
    assert get_tokenizer(name).count(text) == len(official(name).encode_ordinary(text))


@given(text=st.text(alphabet=st.sampled_from(" \t\r\n\u3000\x0b\x1c\x1fa1./'s漢A"), max_size=40))
def test_blanks_counted_apart_change_no_count(
    text: str, official: Callable[[str], tiktoken.Encoding]
) -> None:
    """Cutting a text at runs of blanks, here already at two, gives tiktoken's own count."""
    short = re.compile(tokens._LONG_BLANKS.pattern.replace("100000", "2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_LONG_BLANKS", short)
        patch.setattr(tokens, "_LONG_CHARS", 0)
        for name in NAMES:
            assert get_tokenizer(name).count(text) == len(official(name).encode_ordinary(text))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [" " * 2_000_000, " \t" * 1_000_000 + "end", "\n \n" * 700_000])
def test_millions_of_blanks_are_counted(name: str, text: str) -> None:
    """Runs of blanks that make tiktoken's own pattern panic are counted."""
    assert 0 < get_tokenizer(name).count(text) < len(text)


def test_o200k_base_is_the_default() -> None:
    """The default vocabulary is o200k_base, in which this greeting is two tokens."""
    assert TiktokenTokenizer().name == "o200k_base"
    assert TiktokenTokenizer().count("Hello world") == 2


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ude00\ud83d"])
def test_lone_surrogate_is_refused(text: str) -> None:
    """A lone surrogate is no Unicode text and is refused in one sentence."""
    with pytest.raises(InvalidInputError, match="lone surrogate"):
        TiktokenTokenizer().count(text)


@pytest.mark.parametrize("make", [get_tokenizer, TiktokenTokenizer])
@pytest.mark.parametrize("name", ["", "gpt-4o", "p50k_base", "O200K_BASE", "../secrets"])
def test_unknown_name_is_refused(make: Callable[[str], Tokenizer], name: str) -> None:
    """A vocabulary that is not shipped is refused with the names that are."""
    with pytest.raises(ConfigError, match="o200k_base and cl100k_base"):
        make(name)


def test_import_loads_neither_tiktoken_nor_a_vocabulary() -> None:
    """Importing the module and making a tokenizer loads nothing; counting does."""
    code = """
import sys
from pgcontext.tokens import get_tokenizer
tokenizer = get_tokenizer("cl100k_base")
assert not {"tiktoken", "numpy", "gzip"} & set(sys.modules), "loaded too early"
tokenizer.count("now")
print("tiktoken" in sys.modules, "numpy" in sys.modules)
"""
    assert run(code) == "True False"


def test_counting_needs_no_network_and_writes_nothing(tmp_path: Path) -> None:
    """Counting neither opens a socket nor a file for writing, nor touches the environment."""
    code = f"""
import os, sys
def hook(event, args):
    if event.startswith("socket."):
        raise SystemExit("the network was touched: " + event)
    if event in ("os.mkdir", "os.rename", "os.remove", "os.putenv", "tempfile.mkstemp"):
        raise SystemExit("something was changed: " + event)
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise SystemExit("a file was opened for writing: " + str(args[0]))
sys.dont_write_bytecode = True
os.chdir({str(tmp_path)!r})
os.environ.pop("TIKTOKEN_CACHE_DIR", None)
before = dict(os.environ)
sys.addaudithook(hook)
from pgcontext.tokens import get_tokenizer
for name in {NAMES!r}:
    assert get_tokenizer(name).count("offline, always") > 0
assert dict(os.environ) == before
print("fine")
"""
    assert run(code) == "fine"


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not gzip", id="not gzip"),
        pytest.param(gzip.compress(b"IQ== 0\n"), id="another file"),
        pytest.param(gzip.compress(b"IQ== 0\n" * 100)[:-9], id="truncated"),
        pytest.param(gzip.compress(b"x" * 99)[:10] + b"\xff" * 30, id="garbage inside"),
    ],
)
def test_damaged_vocabulary_is_refused(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary that is not the pinned one is refused by name, with what to do."""
    if content is not None:
        (tmp_path / "o200k_base.tiktoken.gz").write_bytes(content)
    monkeypatch.setattr(tokens, "_DIRECTORY", tmp_path)
    with pytest.raises(ConfigError, match=r"o200k_base .* is damaged; install it again"):
        TiktokenTokenizer().count("text")


@pytest.mark.usefixtures("fresh_cache")
def test_many_threads_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that count at the same moment load the vocabulary once between them."""
    loads: list[str] = []
    unpack = tokens._unpacked

    def counted(name: str, sha256: str) -> bytes:
        loads.append(name)
        return unpack(name, sha256)

    monkeypatch.setattr(tokens, "_unpacked", counted)
    together = threading.Barrier(8)
    counts: list[int] = []

    def count() -> None:
        together.wait()
        counts.append(TiktokenTokenizer("cl100k_base").count("Hello world"))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["cl100k_base"]
    assert counts == [2] * 8


def test_another_tokenizer_plugs_in() -> None:
    """Any object with a name and a count is a Tokenizer; nothing needs to be inherited."""

    class Words:
        name = "words"

        def count(self, text: str) -> int:
            return len(text.split())

    tokenizer: Tokenizer = Words()
    assert tokenizer.count("three small words") == 3
