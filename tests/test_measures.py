"""The limits of the design, on small sources whose numbers are counted by hand."""

import ast
import json
from pathlib import Path
from textwrap import dedent

import pytest

from tools.measures import (
    ANCHORS,
    FIGURES,
    LIMITS,
    Measurement,
    compute_figures,
    find_breaches,
    find_problems,
    main,
    read_allowed,
    shrink,
)
from tools.sources import (
    Source,
    count_branches,
    count_methods,
    find_cycles,
    find_definitions,
    find_imports,
    find_scopes,
    find_wide_lines,
)


def source(text: str, path: str = "src/fedpeft/one.py") -> Source:
    return Source(path, dedent(text))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("x = 1 if a else 2", 2),
        ("x = a and b", 2),
        ("x = a and b and c or d", 4),  # `and` twice, `or` once
        ("x = [b for b in a]", 2),
        ("x = {b: c for b in a for c in b if c}", 3),  # two `for`; its `if` is no branch
        ("x = sum(b for b in a if b and c)", 3),
        ("if a:\n        pass\n    elif b:\n        pass\n    else:\n        pass", 3),
        ("for b in a:\n        pass\n    else:\n        pass", 2),
        ("while a:\n        pass", 2),
        ("try:\n        a\n    except ValueError:\n        b\n    except OSError:\n        c", 3),
        ("with a:\n        assert b", 1),
        ("match a:\n        case 1:\n            pass\n        case _:\n            pass", 3),
        ("x = lambda: 1 if a else 2", 2),  # a lambda counts for its function
        ("def inner():\n        return a and b", 1),
    ],
)
def test_complexity_by_hand(body: str, expected: int) -> None:
    function = ast.parse(f"def f(a, b, c, d):\n    {body}\n").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert count_branches(function) == expected


def test_functions_inside_others_count_for_themselves() -> None:
    one = source(
        """
        class A:
            def f(self):
                def g():
                    return 1 if self else 2
                return g

        if True:
            async def h(): pass
        """
    )
    found = {name: scope for name, scope in find_scopes(one.tree)}
    assert list(found) == ["A", "A.f", "A.f.g", "h"]
    branches = {
        name: count_branches(scope)
        for name, scope in found.items()
        if not isinstance(scope, ast.ClassDef)
    }
    assert branches == {"A.f": 1, "A.f.g": 2, "h": 1}


def test_only_protocols_have_methods_to_count() -> None:
    tree = ast.parse(
        "class A(Protocol[T]):\n    x: int\n    def f(self): ...\n"
        "    @property\n    def g(self): ...\n"
        "class B(A):\n    def f(self): ...\n"
    )
    protocol, other = tree.body
    assert isinstance(protocol, ast.ClassDef) and isinstance(other, ast.ClassDef)
    assert (count_methods(protocol), count_methods(other)) == (2, 0)


def test_code_lines_are_not_blank_no_comment_and_no_docstring() -> None:
    one = source(
        '"""Head,\nof two lines."""\n\n# a reason\n'
        'X = 1  # a note\n"""What X is."""\ny = """\na"""\n'
    )
    assert one.code == {5, 7, 8}


def test_what_a_tool_is_told_may_stand_beyond_the_width() -> None:
    code = "x = " + "1" * 90
    lines = [code, code + "  # type: ignore[attr-defined]", code + "1234567", "# noqa " + "x" * 95]
    assert find_wide_lines(source("\n".join(lines))) == [3, 4]


MODULES = {"fedpeft", "fedpeft.a", "fedpeft.b", "fedpeft.b.c", "fedpeft.b.d"}


def test_imports_are_those_of_the_package_that_run() -> None:
    text = """
    import json
    from typing import TYPE_CHECKING
    import fedpeft.a
    from fedpeft.b import c, name
    from .b import d

    if TYPE_CHECKING:
        from fedpeft import x

    def f():
        from fedpeft.a import y
    """
    found = find_imports(source(text), MODULES)
    assert found == {"fedpeft.a", "fedpeft.b", "fedpeft.b.c", "fedpeft.b.d"}


def test_relative_imports_start_where_the_file_lies() -> None:
    inside = source("from . import d\nfrom ..a import x\n", "src/fedpeft/b/c.py")
    assert find_imports(inside, MODULES) == {"fedpeft.b.d", "fedpeft.a"}
    package = source("from .c import x\nfrom ..a import y\n", "src/fedpeft/b/__init__.py")
    assert find_imports(package, MODULES) == {"fedpeft.b.c", "fedpeft.a"}


def test_cycles_are_named_by_all_their_modules_and_no_others() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert find_cycles(imports) == {"b": ["b", "c"], "c": ["b", "c"]}


def test_a_name_is_defined_once_in_each_module() -> None:
    first = source(
        "def f(): pass\ndef f(): pass\ndef _g(): pass\nclass A:\n    def h(self): pass\n"
    )
    second = source(
        "class f: pass\ndef _g(): pass\ndef h(): pass\nfrom x import A\n", "src/fedpeft/b.py"
    )
    assert find_definitions([first, second]) == {
        "f": ["fedpeft.b", "fedpeft.one"],
        "A": ["fedpeft.one"],
        "h": ["fedpeft.b"],
    }


def test_figures_by_hand() -> None:
    """Ten lines are not blank, seven of them code, three of these bodies; two functions of 2."""
    one = source(
        '''
        """Head."""
        # a reason
        X = [x for x in "ab"]

        def f(x):
            """First."""
            return x or 1

        def g(x):  # a note
            y = 2 if x else 3
            return y

        Y = 1
        '''
    )
    assert compute_figures([one]) == pytest.approx((10 * 4 / 3, 10.0, 10.0, 0.0, 100 * 2 / 7))
    assert compute_figures([]) == (0, 0, 0, 0, 0)


def test_the_others_have_every_figure() -> None:
    assert {len(figures) for figures in ANCHORS.values()} == {len(FIGURES)}


# --- limits ---


@pytest.mark.parametrize(
    ("measure", "kept", "broken"),
    [
        (
            "complexity",
            "def f(a):\n    return a" + " or a" * 9,
            "def f(a):\n    return a" + " or a" * 10,
        ),
        ("function-lines", "def f():\n" + "    f()\n" * 49, "def f():\n" + "    f()\n" * 50),
        ("file-lines", "\n" * 400, "\n" * 401),
        ("wide-lines", "x = " + "1" * 96, "x = " + "1" * 97),
        (
            "methods",
            "class A(Protocol):\n" + "".join(f"    def f{k}(self): ...\n" for k in range(3)),
            "class A(Protocol):\n" + "".join(f"    def f{k}(self): ...\n" for k in range(4)),
        ),
    ],
)
def test_a_limit_is_the_last_value_that_is_kept(measure: str, kept: str, broken: str) -> None:
    assert not find_breaches([source(kept)])
    (one,) = find_breaches([source(broken)])
    assert (one.measure, one.value) == (measure, LIMITS[measure].most + 1)


def test_limits_of_modules_are_those_of_the_package_alone() -> None:
    others = [source("", f"src/fedpeft/m{k}.py") for k in range(13)]
    text = "".join(f"import fedpeft.m{k}\n" for k in range(13))
    found = find_breaches([source(text), *others])
    assert [(one.place, one.value) for one in found] == [("src/fedpeft/one.py", 13)]
    assert not find_breaches([source(text, "tests/one.py"), *others])
    ring = [
        source("import fedpeft.m1", "src/fedpeft/m0.py"),
        source("import fedpeft.m0", "src/fedpeft/m1.py"),
    ]
    assert [(one.measure, one.value, one.note) for one in find_breaches(ring)] == [
        ("cycle", 2, "fedpeft.m0, fedpeft.m1")
    ] * 2


def test_names_are_compared_within_the_package_but_for_what_is_shipped_with_models() -> None:
    places = ("src/fedpeft/one.py", "src/fedpeft/two.py", "tests/one.py")
    (one,) = find_breaches([source("def f(): pass", place) for place in places])
    assert (one.place, one.value) == ("src/fedpeft:f", 2)
    shipped = source("def f(): pass", "src/fedpeft/assets/export/two.py")
    assert not find_breaches([source("def f(): pass"), shipped])


def test_of_two_things_of_one_name_the_worse_is_told() -> None:
    text = "def f(a):\n    return a" + " or a" * 10 + "\ndef f(a):\n    return a" + " or a" * 14
    assert [one.value for one in find_breaches([source(text)])] == [15]


# --- the list ---

BROKEN = Measurement("src/fedpeft/one.py:f", "complexity", 12, "line 3")


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("", "complexity is 12, and at most 10 is allowed (line 3): name what"),
        ("src/fedpeft/one.py:f complexity 11", "is 12, and at most 11 is allowed"),
        ("src/fedpeft/one.py:f complexity 13", "is 12, and the list still allows 13: lower it"),
    ],
)
def test_a_breach_must_be_listed_with_its_value(listed: str, words: str) -> None:
    (problem,) = find_problems([BROKEN], read_allowed(listed))
    assert problem.startswith("src/fedpeft/one.py:f: ") and words in problem


def test_a_listed_breach_is_let_pass_and_one_that_is_mended_must_go() -> None:
    text = "# why\n\nsrc/fedpeft/one.py:f complexity 12\n"
    assert not list(find_problems([BROKEN], read_allowed(text)))
    (problem,) = find_problems([], read_allowed(text))
    assert "src/fedpeft/one.py:f: complexity keeps its limit: take it off the list" in problem


@pytest.mark.parametrize(
    "line", ["a complexity", "a complexity x", "a beauty 3", "a b complexity 3"]
)
def test_what_is_no_breach_is_no_line_of_the_list(line: str) -> None:
    with pytest.raises(ValueError, match="is no allowed breach"):
        read_allowed(line)


def test_the_list_shrinks_and_never_grows() -> None:
    text = "# why\na.py:f complexity 14\nb.py imports 13\nc.py:g complexity 11\n"
    left = [
        Measurement("a.py:f", "complexity", 12),
        Measurement("c.py:g", "complexity", 13),
        Measurement("d.py:h", "complexity", 20),
    ]
    assert shrink(text, left) == "# why\na.py:f complexity 12\nc.py:g complexity 11\n"


# --- the command ---


def test_the_command_fails_on_a_breach_until_it_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, listed = tmp_path / "src" / "fedpeft" / "one.py", tmp_path / "allowed.txt"
    file.parent.mkdir(parents=True)
    words = ["--root", str(tmp_path), "--allowed", str(listed)]
    file.write_text("def f(a):\n    return a" + " or a" * 12 + "\n")
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "fedjax" in shown and "src/fedpeft/one.py:f: complexity is 13" in shown
    listed.write_text("src/fedpeft/one.py:f complexity 13\n")
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == [] and told["breaches"][0]["value"] == 13
    assert told["figures"]["fedpeft"][0] == 130.0
    file.write_text("def f(a):\n    return a\n")
    assert main(words) == 1
    assert main([*words, "--shrink"]) == 0
    assert listed.read_text() == ""
