"""Names: typos are answered with what is near, references are imported or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookkd.core.errors import ConfigError, MissingExtraError, UnknownNameError
from bookkd.core.fields import check_field_name
from bookkd.core.names import choose, import_reference, is_reference, look_up, nearest, require

KNOWN = ["vanilla-kd", "supervised", "dkd", "feature-kd"]


@pytest.mark.parametrize(
    ("typo", "first"),
    [("vanila-kd", "vanilla-kd"), ("VANILLA-KD", "vanilla-kd"), ("supervise", "supervised"), ("ddk", "dkd")],
)
def test_the_nearest_name_comes_first(typo: str, first: str):
    assert nearest(typo, KNOWN)[0] == first


@given(st.text(max_size=8), st.lists(st.text(max_size=8), unique=True, max_size=8))
def test_nearest_is_an_order_of_all_names_that_does_not_depend_on_theirs(name: str, names: list[str]):
    found = nearest(name, names)
    assert sorted(found) == sorted(names)
    assert nearest(name, reversed(names)) == found
    if name in names and name == name.lower():
        assert found[0].lower() == name


@pytest.mark.parametrize(
    ("names", "where", "message"),
    [
        (KNOWN, "", "Unknown method 'dk'. Nearest: dkd, feature-kd, supervised, vanilla-kd."),
        ((), "book", "Unknown method 'dk' (book). Nearest: none, the table is empty."),
        (["dkd"], "book", "Unknown method 'dk' (book). Nearest: dkd."),
    ],
)
def test_a_name_that_is_not_there(names: list[str], where: str, message: str):
    with pytest.raises(UnknownNameError) as caught:
        choose("dk", names, "method", where=where)
    assert str(caught.value) == message
    assert isinstance(caught.value, LookupError)


def test_of_many_names_eight_are_listed():
    with pytest.raises(UnknownNameError, match=r"Nearest: (n\d+, ){7}n\d+ and 12 more\.$"):
        choose("n", [f"n{i}" for i in range(20)], "name")
    with pytest.raises(UnknownNameError, match=r"Nearest: (n\d, ){7}n\d\.$"):
        choose("n", (f"n{i}" for i in range(8)), "name")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        *(("a:B", True), ("a.b_1:C.d", True), ("a", False), ("a:", False), (":b", False), ("a:b:c", False)),
        *(("a b:c", False), ("a..b:c", False), ("a/b:c", False), ("../a:b", False), ("a:b()", False), ("", False)),
    ],
)
def test_the_form_of_a_reference(text: str, is_one: bool):
    assert is_reference(text) is is_one
    if not is_one:
        with pytest.raises(ConfigError, match=r"Expected thing to be `package\.module:Name`, got .* a colon and the"):
            import_reference(text, "thing")


def test_a_reference_is_what_python_imports():
    assert import_reference("pathlib:Path", "thing") is Path
    assert import_reference("pathlib:Path.cwd", "thing") == Path.cwd
    assert look_up("path", {"path": "pathlib:Path", "broken": "no_such_module:x"}, "thing") is Path
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'pth'\. Nearest: path"):
        look_up("pth", {"path": "pathlib:Path"}, "thing")


CODE = {
    "broken": "import not_a_package_at_all",
    "needs_extra": "from bookkd.core.names import require\nrequire('not_a_package_at_all', 'train')",
    "bare": "_hidden = 1",
    "raises": "raise RuntimeError('mine')",
}


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in CODE.items():
        (tmp_path / f"core_names_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("user_code")
@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("core_names_absent:x", ConfigError, r"importable, got ModuleNotFoundError: .* Check the name and PYTHONPATH"),
        ("core_names_broken:x", ConfigError, r"importable, got ModuleNotFoundError: No module named 'not_a_package_at"),
        ("core_names_bare:x", ConfigError, r"to exist, got no 'x' in core_names_bare\. Nearest: none"),
        ("pathlib:Pth", ConfigError, r"to exist, got no 'Pth' in pathlib\. Nearest: Path,"),
        ("pathlib:Path.cwdd", ConfigError, r"got no 'cwdd' in pathlib\. Nearest: cwd,"),
        ("core_names_needs_extra:x", MissingExtraError, r"pip install 'bookkd\[train\]'"),
        ("core_names_raises:x", RuntimeError, "^mine$"),
    ],
)
def test_references_that_lead_nowhere(reference: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        import_reference(reference, "thing")


@pytest.mark.usefixtures("user_code")
def test_an_optional_package_is_imported_or_its_extra_is_named():
    assert require("json.decoder", "train").__name__ == "json.decoder"
    with pytest.raises(MissingExtraError, match=r"needs the package 'no_such', which .* pip install 'bookkd\[ray\]'"):
        require("no_such.inner", "ray")
    with pytest.raises(ModuleNotFoundError, match="not_a_package_at_all"):
        require("core_names_broken", "train")  # it is there; what it lacks is not ours to name


@pytest.mark.parametrize("name", ["logits", "features/layer3.0", "members/0/logits", "a/b-c/_d", "a" + "/b" * 7])
def test_names_of_fields(name: str):
    assert check_field_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Logits",
        "1a",
        "a/",
        "/a",
        "a//b",
        "a/..",
        "../a",
        "a/.b",
        "a b",
        "a\n",
        "a\\b",
        "a" + "/b" * 8,
        "a" * 201,
        "ä",
    ],
)
def test_what_may_not_name_a_field(name: str):
    with pytest.raises(ConfigError, match="`field` to be a name such as `logits` or `features/layer3`"):
        check_field_name(name)
