"""The grader takes what is right, and names what is wrong: wrong solutions are right ones with one change."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.course import import_course
from helpers.paths import ROOT

SOLUTIONS = Path(__file__).parent / "solutions"
NOT_SENT = "The gradient of the half that you received is not sent back."
AVERAGED = "You averaged where the halves' gradients must be summed."
ROUNDED = "What crosses is rounded on its way."
ROUNDED_GRADIENT = "The gradient that you return for x is rounded.\nWhat crosses is not"
ROUNDED_HALF = "The half that finish returns is rounded.\nWhat crosses is not"
FUNCTION = "A function stands where a tensor is due."
KEY = '(what, seed, None if what == "images" else tower, step)'
NUMBER = 'int.from_bytes(hashlib.sha256(text).digest()[:7], "big")'
START = "return Start.apply(x, link, peer_shape, flight), flight"
BACK = "return ctx.link.swap(grad_peer, ctx.shape), None, None"

# What is replaced in the solution of an assignment, by what, and how the mistake is called.
WRONG: dict[str, list[tuple[str, str, str]]] = {
    "assignment1": [
        (BACK, "return None, None, None", NOT_SENT),
        ("return Finish.apply(x, wait, link)", "return wait()", NOT_SENT),
        (BACK, "ctx.link.swap(grad_peer, ctx.shape); return None, None, None", "You drop the gradient"),
        (BACK, "return grad_peer, None, None", NOT_SENT),
        (BACK, "ctx.link.swap(grad_peer, ctx.shape); return grad_peer, None, None", "as if it were that of your own"),
        (
            BACK,
            "return grad_peer + ctx.link.swap(grad_peer, ctx.shape), None, None",
            "You add the gradient of the half",
        ),
        (BACK, "return ctx.link.swap(grad_peer, ctx.shape) / 2, None, None", AVERAGED),
        (BACK, "return ctx.link.swap(grad_peer / 2, ctx.shape), None, None", AVERAGED),
        (BACK, "return 2 * ctx.link.swap(grad_peer, ctx.shape), None, None", "is counted twice"),
        (BACK, "return -ctx.link.swap(grad_peer, ctx.shape), None, None", "is subtracted"),
        (BACK, "return 0.7 * ctx.link.swap(grad_peer, ctx.shape), None, None", "1 times your own use and 0.7 times"),
        (BACK, "return ctx.link.swap(grad_peer.float(), ctx.shape).double(), None, None", ROUNDED),
        (BACK, "return ctx.link.swap(grad_peer, ctx.shape).half().double(), None, None", ROUNDED_GRADIENT),
        (
            BACK,
            "send = grad_peer if ctx.link.tower else grad_peer.half().double()\n"
            "        return ctx.link.swap(send, ctx.shape), None, None",
            f"Tower 0 alone: {ROUNDED}",
        ),
        (BACK, "return ctx.link.swap(grad_peer, grad_peer.shape), None, None", "and one of [4, 5] came"),
        (BACK, "return ctx.wait(), None, None", "both towers wait, and neither has sent"),
        (BACK, "return ctx.link.swap(grad_peer, ctx.shape)", "another number of values than forward has arguments"),
        (
            BACK,
            "if ctx.link.tower == 0:\n            return None, None, None\n        " + BACK,
            f"Tower 0 alone: {NOT_SENT}",
        ),
        (
            BACK,
            "return ctx.link.swap(grad_peer / (1 + ctx.link.tower), ctx.shape), None, None",
            f"Tower 1 alone: {AVERAGED}",
        ),
        (
            BACK,
            "return ctx.link.swap(grad_peer, ctx.shape) / (1 + ctx.link.tower), None, None",
            f"Tower 1 alone: {AVERAGED}",
        ),
        (BACK, "return ctx.link.post(grad_peer, ctx.shape), None, None", f"{FUNCTION}\nlink.post returns a function"),
        (
            BACK,
            "return ctx.link.post(grad_peer, ctx.shape) / 1, None, None",
            "line 14, in backward: return ctx.link.post",
        ),
        (
            BACK,
            "[ctx.link.swap(grad_peer, ctx.shape) for _ in range(ctx.link.tower)]; " + BACK,
            "Tower 1 sends 2 tensors in one backward pass",
        ),
        ("return wait()", "return wait", "Call that function"),
        (
            "return wait()",
            "return link.swap(x, wait().shape)",
            "You send 2 tensors in one forward pass, and one is due.",
        ),
        (
            "return wait()",
            "y = wait(); link.swap(x, y.shape); return y",
            "x is on its way already when finish is called",
        ),
        (
            "return wait()",
            "y = wait(); return y if link.tower else wait()",
            "Tower 0 waits twice in one forward pass",
        ),
        (BACK, "return ctx.link.swap(grad_peer, ctx.shape), grad_peer, None", "for an argument that is no tensor"),
        ("return wait()", "wait(); return x.clone()", "finish returns this tower's own half x."),
        ("return wait()", "return torch.zeros_like(wait())", "finish returns zeros."),
        ("return wait()", "return (x + wait()) / 2", "finish mixes both halves."),
        ("return wait()", "return wait().bfloat16().double()", ROUNDED_HALF),
        ("return wait()", "return wait().half()", ROUNDED_HALF),
        ("return wait()", "x.mul_(0); return wait()", "x is changed in place."),
        (
            "return wait()",
            "kept = Finish.__dict__.get('kept', {}); now = wait(); old = kept.get(link.tower, now); "
            "kept[link.tower] = now; Finish.kept = kept; return old.clone()",
            "finish returns the half of the step before.",
        ),
    ],
    "assignment2": [
        ("[own, peer] if link.tower == 0 else [peer, own]", "[own, peer]", "Wrong order of the halves in tower 1"),
        ("(len(own), num_classes - own.shape[1])", "own.shape", "You awaited a tensor of [4, 6], and one of [4, 5]"),
        ("torch.cat([own, peer]", "torch.cat([own.detach(), peer]", "The own half gets no gradient."),
        ("torch.cat(", "2 * torch.cat(", "something that is not the logits"),
        (
            "    peer =",
            "    own.register_hook(lambda grad: 2 * grad)\n    peer =",
            "You summed the gradients of both",
        ),
        ("    peer =", "    own.register_hook(lambda grad: grad / 2)\n    peer =", "You halve the gradient"),
        (
            "    peer =",
            "    own.register_hook(lambda grad: (grad + link.swap(grad, peer.shape).sum() * 0))\n    peer =",
            "A gradient crosses in the backward pass, and nobody needs it.",
        ),
        ("[own, peer] if link.tower == 0 else [peer, own]", "[own]", "this tower's half alone"),
        ("peer = link.swap", "peer = link.post", FUNCTION),
        ("    peer =", "    link.swap(own, own.shape)\n    peer =", "You send 2 tensors in one forward pass"),
        (
            "peer = link.swap(own, (len(own), num_classes - own.shape[1]))",
            "wait = link.post(own, (len(own), num_classes - own.shape[1])); peer = wait(); link.tower or wait()",
            "Tower 0 waits twice in one forward pass, and one tensor comes.",
        ),
        (
            "return torch.cat([own, peer] if link.tower == 0 else [peer, own], dim=1)",
            "z = torch.zeros(len(own), num_classes)\n"
            "    z[:] = torch.cat([[own, peer], [peer, own]][link.tower], 1)\n    return z",
            "The logits that collect returns are rounded to float32.\nWhat crosses is not",
        ),
        ("swap(own,", "swap(own.float().double(),", ROUNDED),
        ("swap(own,", "swap(own if link.tower else own.float().double(),", f"Tower 0 alone: {ROUNDED}"),
        ("num_classes - own.shape[1]", "1", "[B, the number of the other tower's classes]"),
    ],
    "assignment3": [
        ('ctx.flight["backward"](), None', "None, None", "You drop the gradient"),
        ('ctx.flight["backward"](), None', 'ctx.flight["backward"]() / 2, None', AVERAGED),
        (
            "link.post(x, peer_shape)\n        return",
            "(lambda came: lambda: came)(link.swap(x, peer_shape))\n        return",
            "start waits for the other half.",
        ),
        (
            'flight["link"].post(grad_peer, flight["shape"])',
            '(lambda came: lambda: came)(flight["link"].swap(grad_peer, flight["shape"]))',
            "finish's backward waits for the other tower's gradient.",
        ),
        ("return Finish.apply(token, flight)", "return Finish.apply(token.detach(), flight)", NOT_SENT),
        ('return flight["forward"]()', 'return flight["forward"]().bfloat16().double()', ROUNDED_HALF),
        ('ctx.flight["backward"](), None', 'ctx.flight["backward"]().half().double(), None', ROUNDED_GRADIENT),
        ("link.post(x, peer_shape)", "link.post(x.bfloat16().double(), peer_shape)", ROUNDED),
        (
            "link.post(x, peer_shape)",
            "link.post(x if link.tower else x.half(), peer_shape)",
            "Tower 0 alone: " + ROUNDED,
        ),
        ("link.post(x, peer_shape)", "link.post(x.half(), peer_shape)", ROUNDED),
        ('link"].post(grad_peer,', 'link"].post(grad_peer.bfloat16().double(),', ROUNDED),
        (START, "return flight", "start must return two things"),
        (
            START,
            START.replace("return ", "return flight, ").removesuffix(", flight"),
            "it returned tuple of dict and Tensor.",
        ),
        (
            START,
            "Start.apply(x, link, peer_shape, flight); return x, flight",
            "returns for the token is [0], and the token",
        ),
        (START, "Start.apply(x, link, peer_shape, flight); return flight, x", "The token comes first"),
        ('ctx.flight["backward"](), None', 'ctx.flight["backward"], None', FUNCTION),
        (
            '= flight["link"].post(grad_peer, flight["shape"])',
            '= lambda: flight["link"].swap(grad_peer, flight["shape"])',
            "autograd runs the youngest first, and finish was called after own(x).",
        ),
    ],
    "assignment4": [
        ('None if what == "images" else tower', "tower", "The towers look at different images."),
        ('None if what == "images" else tower', "None", "Both towers start with the same weights."),
        ('what == "images"', 'what != "weights"', "Both towers draw one dropout mask."),
        ("tower, step)\n    text", "tower)\n    text", "Each step takes the same images."),
        ("(what, seed, None", "(what, None", "Another seed draws the same images."),
        ("(what, seed, None", "(seed, None", "They differ in `what` alone. Put what in."),
        ('int.from_bytes(hashlib.sha256(text).digest()[:7], "big")', "hash(text) % 2**63", "in another process"),
        ("return int", "return -int", "the remainder, % 2**63, is in the range"),
        (KEY, KEY.replace("seed", "seed + step").replace(", step)", ")"), "too small for the range of step"),
        (NUMBER, "__import__('zlib').crc32(text)", "Numbers of 32 bits, as of zlib.crc32, meet by chance"),
        (
            "return int",
            "return __import__('random').getrandbits(62) + int",
            "when it is asked again",
        ),
    ],
}
CASES = [(name, *change) for name, changes in WRONG.items() for change in changes]


@pytest.fixture
def grader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """course/grade.py; a tower that waits in vain gives up soon."""
    import_course(monkeypatch)
    import grade
    from grading import threads

    begin = threads.Link.__init__

    def begin_impatient(self, *arguments, **options) -> None:
        begin(self, *arguments, **options)
        self.seconds = 0.5

    monkeypatch.setattr(threads.Link, "__init__", begin_impatient)
    return grade


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", WRONG)
def test_solutions_are_right(grader, name: str) -> None:
    is_right, said = grader.judge(SOLUTIONS / f"{name}.py")
    assert is_right, said
    assert said.startswith("Right: ")


# What is replaced in a right solution, and it stays right: as in two processes, what is global is so in one tower.
GLOBAL = {
    "assignment1": (
        ("ctx.link, ctx.shape = link, x.shape", "global LINK\n        LINK, ctx.shape = link, x.shape"),
        ("ctx.link.swap", "LINK.swap"),
    ),
    "assignment3": (
        ("ctx.flight = flight", "pass"),
        ("flight = ctx.flight", "flight = FLIGHT"),
        ("ctx.flight", "FLIGHT"),
        ("    flight = {}", "    global FLIGHT\n    FLIGHT = flight = {}"),
    ),
}


def change(name: str, changes: Iterable[tuple[str, str]]) -> str:
    """A solution with changes."""
    text = (SOLUTIONS / f"{name}.py").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", GLOBAL)
def test_towers_have_globals_of_their_own(grader, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(change(name, GLOBAL[name]))
    is_right, said = grader.judge(tmp_path / "mine.py")
    assert is_right, said


@pytest.mark.usefixtures("one_thread")
def test_prints_are_whole_lines_of_one_tower(grader, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both towers print in pieces at the same time; two steps with each of two pairs of widths, in each tower."""
    pieces = (
        "[(print(piece, end='', flush=True), time.sleep(0.02)) for piece in 'abc']; print(); print('end', end='')"
    )
    changes = [
        ("return wait()", f"peer = wait(); {pieces}; return peer"),
        ("import torch", "import time\n\nimport torch"),
    ]
    (tmp_path / "mine.py").write_text(change("assignment1", changes))
    assert grader.judge(tmp_path / "mine.py")[0]
    lines = capsys.readouterr().out.splitlines()
    for tower in (0, 1):
        mine = [line.split(": ")[1] for line in lines if line.startswith(f"tower {tower}: ")]
        assert mine == ["abc", "endabc", "endabc", "endabc", "end"]
    assert len(lines) == 10


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("seeds", "is_right", "says"), [("1000", False, "Give each part digits"), ("10**6", True, "streams of their own")]
)
def test_digits_must_do_for_the_range_that_is_named(
    grader, tmp_path: Path, seeds: str, is_right: bool, says: str
) -> None:
    """seed up to 999, step up to 999,999, as the assignment has it."""
    text = f"""
def stream(what, seed, tower, step):
    part = ["images", "weights", "dropout"].index(what) * 2 + (tower if what != "images" else 0)
    return (part * {seeds} + seed) * {seeds} + step
"""
    (tmp_path / "mine.py").write_text(text)
    found, said = grader.judge(tmp_path / "mine.py")
    assert found == is_right
    assert says in said


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("is_finish_last", "has_token", "order"),
    [(True, True, "finish own start"), (False, True, "own finish start"), (True, False, "finish own")],
)
def test_autograd_runs_the_youngest_node_first_and_start_because_of_the_token(
    is_finish_last: bool, has_token: bool, order: str
) -> None:
    """What assignment 3 says of the order of the backward pass, and the grader's hint."""
    happened: list[str] = []

    def note(name: str) -> type:
        class Note(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                happened.append(name)
                return grad

        return Note

    x = torch.ones(1, requires_grad=True) * 1
    token = note("start").apply(x)
    token = token if has_token else token.detach().requires_grad_()
    y = note("own").apply(x) if is_finish_last else None
    peer = note("finish").apply(token)
    y = note("own").apply(x) if y is None else y
    (y + 2 * peer).sum().backward()
    assert " ".join(happened) == order


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", WRONG)
def test_gaps_are_open(grader, name: str) -> None:
    """What the reader is given holds no solution."""
    is_right, said = grader.judge(ROOT / "course" / f"{name}.py")
    assert not is_right
    assert said.startswith("Not yet: the gap is still open (write ")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "before", "after", "mistake"), CASES)
def test_mistakes_are_named(grader, tmp_path: Path, name: str, before: str, after: str, mistake: str) -> None:
    text = (SOLUTIONS / f"{name}.py").read_text()
    assert before in text
    text = text.replace(before, after).replace(
        "ctx.link, ctx.shape = link", "ctx.wait = wait; ctx.link, ctx.shape = link"
    )
    (tmp_path / f"{name}.py").write_text(text)
    is_right, said = grader.judge(tmp_path / f"{name}.py")
    assert not is_right
    assert mistake in said, said
    assert "Traceback" not in said


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def finish(x, wait, link):\n    return wait(", "Your file is no Python: '(' was never closed, line 2"),
        ("def finish(x, wait, link):\n    return wat()", "raised NameError: name 'wat' is not defined"),
        ("def finish(x, wait):\n    return wait()", "where the grader calls a function of yours"),
        ("import nothing_like_it", "raised ModuleNotFoundError"),
        ("def begin():\n    pass", "has none of the functions of an assignment"),
        ("def start(x, link, shape):\n    pass", "has no function finish"),
        ("def finish(x, wait, link):\n    return None", "finish returns NoneType"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
    ],
)
def test_errors_of_the_reader_are_short(grader, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    is_right, answer = grader.judge(tmp_path / "mine.py")
    assert not is_right
    assert said in answer, answer
    assert "Traceback" not in answer
    assert len(answer.splitlines()) <= 4
    if "wat" in text:
        assert "line 2, in finish: return wat()" in answer


def test_the_command_grades_in_a_process_of_its_own(
    grader, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is right, what never ends, what ends the process, and a file that is not there."""
    assert grader.main([str(SOLUTIONS / "assignment1.py")]) == 0
    assert capfd.readouterr().out.startswith("Right: halves arrive, gradients go back")
    (tmp_path / "loop.py").write_text("while True:\n    pass")
    assert grader.grade(tmp_path / "loop.py", seconds=3) == (
        False,
        "Not yet: your code has not come to an end within 3 s. Is there an endless loop?",
    )
    (tmp_path / "end.py").write_text("import os\nos._exit(4)")
    assert grader.grade(tmp_path / "end.py") == (False, "Not yet: your code has ended the process (status 4).")
    assert grader.main([str(tmp_path / "none.py")]) == grader.main([]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("error: ") for line in said)
