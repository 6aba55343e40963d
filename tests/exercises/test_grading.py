"""Each exercise: the solution passes, the stub does not, and neither do planted mistakes, whose
refusals name the error."""

import re
from pathlib import Path
from typing import Any

import pytest

from minispec.exercises import grading
from minispec.exercises.catalogue import CHAPTERS, list_exercises, load_answers, read_stub
from minispec.exercises.grading import Exercise

SOLUTIONS = Path(__file__).parent.parent.parent / "docs" / "solutions"
# What replaces a piece of the solution, and what the refusal has to say.
PLANTED: dict[str, list[tuple[str, str, str]]] = {
    "ridge_positions": [
        ("(2 * bandwidth)", "bandwidth", "where it is two"),
        ("bytes_per_weight * op", "op", "the bytes of a weight are left out"),
        ("bytes_per_weight * operations / (2 * bandwidth)",
         "2 * bandwidth / (bytes_per_weight * operations)", "upside down"),
    ],
    "pass_seconds": [
        ("max(4 * weights", "max(4 * n * weights", "read again for each position"),
        ("max(4 * weights / bandwidth, 2 *", "(4 * weights / bandwidth + 2 *", "not their sum"),
        ("max(", "min(", "the shorter of the two"),
    ],
    "expected_tokens": [
        ("expected = reached = 1", "expected, reached = 0, 1", "target's own token"),
        ("reached *= rate", "reached = rate", "multiply the rates"),
        ("return expected", "return reached", "whole chain is accepted"),
    ],
    "verify_chain": [
        ("if accepted < len(proposal):", "if False:", "all calls agree with p itself"),
        ("acceptance_probability(p, q, token)", "p.probability(token)", "with probability p(x)"),
        ("tuple(range(accepted)), token", "tuple(range(len(proposal))), token", "not exact"),
    ],
    "residual": [
        ("for token in p}", "for token in p if token in q}", "never given back"),
        ("max(p[token] - q.get(token, 0), 0)", "abs(p[token] - q.get(token, 0))", "|p - q|"),
        (" if mass else p", "", "ZeroDivisionError"),
    ],
    "choose": [
        ("u < total", "u <= total", "probability 0 at u = 0"),
        ("max(index for index, probability in enumerate(probs) if probability > 0)",
         "len(probs) - 1", "the last id has probability 0"),
        ("        total += probability\n", "        total = probability\n", "expected"),
    ],
    "resync": [
        ("cache.truncate(start)", "pass", "cut the cache to the start of the round"),
        ("cache.truncate(start)", "cache.truncate(start + len(ids) - 1)", "cut the cache"),
        ("[-1]", "", "not that of the last output"),
    ],
    "roll_back": [
        ("before + 1 + accepted", "before + accepted", "the last emitted token, which stays"),
        ("before + 1 + accepted", "before + 2 + accepted", "one position too many"),
        ("before + 1 + accepted", "before", "the cache holds [0, 1], expected [0, 1, 2]"),
    ],
    "draft_inputs": [
        ("tokens[1:], states[:-1]", "tokens, states", "shift the tokens by one"),
        ("tokens[1:], states[:-1]", "tokens[:-1], states[1:]", "shifted the wrong way"),
        ("tokens[1:]", "tokens[:-1]", "lost at the wrong end"),
    ],
    "draft_chain": [
        ("state = draft.step", "draft.step", "the output of this one"),
        ("range(gamma)", "range(gamma - 1)", "it drafts"),
        ("argmax", "argmin", "it drafts"),
    ],
    "cut_ranking": [
        ("sorted([*eos_ids, *others[: budget - len(eos_ids)]])", "sorted(others[:budget])",
         "gives"),
        ("budget - len(eos_ids)", "budget", "gives"),
        ("key=lambda token: -counts[token]", "key=lambda token: (-counts[token], -token)",
         "equal counts go to the lower id"),
    ],
    "AlternatingShortlist": [
        ("return self._ids + context.depth % 2",
         "self._ids[:] = torch.arange(0, 2 * self.budget, 2) + context.depth % 2\n"
         "        return self._ids", "edited in place"),
        ("context.depth % 2", "0", "expected [0, 2], [1, 3], [0, 2]"),
        ('name = "alternating"', 'name, per_round = "alternating", True', "leave it False"),
    ],
    "augment": [
        ("(squares.max() - squares).sqrt()", "squares.sqrt()", "as long as the longest"),
        ("(squares.max() - squares).sqrt()", "squares.max() - squares", "as long as the longest"),
        ("torch.cat([rows,", "torch.cat([rows / squares.sqrt(),", "must stay as they are"),
    ],
    "assign": [
        ("F.normalize(centroids)", "centroids", "scale the centroids"),
        ("(F.normalize(rows) @ F.normalize(centroids).T).argmax(dim=1)",
         "torch.cdist(rows, centroids).argmin(dim=1)", "by distance"),
        ("argmax", "argmin", "farthest away"),
    ],
    "recent_ids": [
        ("reversed(tokens)))", "list(reversed(tokens))[:count]))", "cut before repeated ids"),
        ("reversed(tokens)", "tokens", "the earliest ids"),
        ("list(dict.fromkeys(reversed(tokens)))", "list(reversed(tokens))", "stands in it twice"),
    ],
    "learn_pairs": [
        ("pairs.add((past[accepted], proposed[accepted]))",
         "pairs |= set(zip([before, *proposed][accepted:], proposed[accepted:]))",
         "continue a token that is not in the text"),
        ("if accepted < len(proposed):", "if False:", "is not learnt"),
        ("set(zip(past, emitted))", "set(zip(past[1:], emitted[1:]))", "gives"),
    ],
    "fill": [
        ("for token in ids if", "for token in ids[:limit] if", "uses up this part's limit"),
        ("min(limit, budget - len(taken))", "limit", "more ids than the budget"),
        (" if token not in taken", "", "gives"),
    ],
    "FollowingShortlist": [
        ("recent = [i for i in reversed(context.tokens) if i > 1]",
         'recent = self.__dict__.setdefault("past", [])\n'
         "        recent += [i for i in reversed(context.tokens) if i > 1]", "reset must restore"),
        ("reversed(context.tokens)", "context.tokens", "expected [0, 1, 5, 7]"),
        ("sorted(ids[: self.budget])", "ids[: self.budget]", "expected [0, 1, 5, 7]"),
    ],
    "acceptance_gradient": [
        ("[-b *", "[b *", "change the sign"),
        ("(bit - mean)", "bit", "the mean over q is not subtracted"),
        ("[-b * (bit - mean) for b, bit in zip(q, less)]", "[b - a for a, b in zip(p, q)]",
         "cross-entropy"),
    ],
    "RaisingLearner": [
        ("adjusted = logits.clone()", "self.bias += 0.5\n        adjusted = logits.clone()",
         "changed within a round"),
        ("self.bias = 0.0", "pass", "start must restore the state"),
        ("adjusted = logits.clone()", "ids += 0 * ids + 1\n        adjusted = logits.clone()",
         "edited the ids"),
    ],
    "break_even_tau": [
        ("gamma * (draft + ids * row)", "gamma * draft + ids * row", "not once a round"),
        ("(target + gamma", "(gamma", "the target's own pass"),
        (" + ids * row", "", "the draft's head is left out"),
    ],
    "PackedRows": [
        ("ids is not self._ids", "self._ids is None or len(ids) != len(self._ids)",
         "a stale copy"),
        ("ids is not self._ids", "self._ids is None or ids.sum() != self._ids.sum()",
         "a stale copy"),
        ("ids is not self._ids", "True", "copied at every call"),
    ],
    "find_ancestors": [
        ("row[node] = 1", "row[node] = 1 if parent < 0 else 0", "gives"),
        ("list(mask[parent]) if parent >= 0 else [0] * len(parents)",
         "[int(j <= node) for j in range(len(parents))]", "siblings and cousins"),
        ("list(mask[parent]) if parent >= 0 else [0] * len(parents)",
         "[int(j == parent) for j in range(len(parents))]", "the parent alone"),
    ],
    "verify_siblings": [
        ("p = residual(p, q)", "rest = residual(p, q)", "rejected candidates are forgotten"),
        ("        p = residual(p, q)\n", "    p = residual(p, candidates[-1][1])\n",
         "each candidate is tested against p"),
        ("        p = residual(p, q)\n    return int(p.ids[rng.choose(p.probs)])",
         "        p, whole = residual(p, q), p\n    return int(whole.ids[rng.choose(whole.probs)])",
         "total variation"),
    ],
    "RecentShortlist": [
        ("reversed(context.tokens)", "context.tokens", "expected [1, 3]"),
        ("sorted(ids[: self.budget])", "sorted(ids)", "expected [1, 3]"),
        ("return torch.tensor(sorted(ids[: self.budget]))",
         'past = self.__dict__.setdefault("past", {})\n'
         "        past[context.tokens] = past.get(context.tokens, 0) + 1\n"
         "        wanted = sorted(ids[: self.budget])\n"
         "        return torch.tensor(wanted if past[context.tokens] < 2 else wanted[:1])",
         "change no state"),
    ],
    "verify_on_shortlist": [
        ("rest = positive_part(p, q)\n",
         "common, _ = p.common_indices(q)\n            rest = positive_part(p, q) * 0\n"
         "            rest[common] = positive_part(p, q)[common]\n",
         "never a token outside the shortlist"),
        ("rest = positive_part(p, q)\n", "rest = p.probs * 1\n", "agree with p itself"),
        ("acceptance_probability(p, q, token)", "p.probability(token)", "with probability p(x)"),
    ],
}  # fmt: skip
EXERCISES = [(chapter, each) for chapter in CHAPTERS for each in list_exercises(chapter)]
NAMES = [each.name for _, each in EXERCISES]


@pytest.fixture(autouse=True)
def _grade_quickly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifiers are certified over the first cases alone, but for the slow test."""
    if "verify" in request.node.name and not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(grading, "STAGES", grading.STAGES[:1])


def run(source: str, exercise: Exercise) -> str | None:
    """What is said of the answer in a source."""
    names: dict[str, Any] = {}
    exec(compile(source, "answer.py", "exec"), names)
    return grading.grade(exercise, names[exercise.name])


def read_solution(chapter: int, exercise: Exercise) -> tuple[str, str]:
    """The solutions of a chapter up to one exercise, and from it on to the next."""
    text = (SOLUTIONS / f"{chapter:02}.py").read_text("utf-8")
    start = re.search(rf"^(def|class) {exercise.name}\b", text, re.MULTILINE)
    assert start
    following = re.search(r"^(def|class) ", text[start.end() :], re.MULTILINE)
    end = start.end() + following.start() if following else len(text)
    return text[: start.start()], text[start.start() : end]


@pytest.mark.parametrize(("chapter", "exercise"), EXERCISES, ids=NAMES)
def test_grade_accepts_the_solution(chapter: int, exercise: Exercise) -> None:
    assert run("".join(read_solution(chapter, exercise)), exercise) is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 13])
def test_grade_accepts_verifiers_over_all_cases(number: int) -> None:
    [exercise] = [each for each in list_exercises(number) if each.name.startswith("verify")]
    answers = load_answers(SOLUTIONS / f"{number:02}.py")
    assert grading.grade(exercise, answers[exercise.name]) is None


PLANTED_CASES = [
    pytest.param(chapter, exercise, *planted, id=f"{exercise.name}-{number}")
    for chapter, exercise in EXERCISES
    for number, planted in enumerate(PLANTED[exercise.name])
]


@pytest.mark.parametrize(("chapter", "exercise", "old", "new", "said"), PLANTED_CASES)
def test_grade_names_a_planted_error(
    chapter: int, exercise: Exercise, old: str, new: str, said: str
) -> None:
    before, solution = read_solution(chapter, exercise)
    assert old in solution
    error = run(before + solution.replace(old, new), exercise)
    assert error is not None and said in error


def test_grade_refuses_stubs() -> None:
    """An empty one is not written yet; one with a defect is wrong, its other half being right."""
    for chapter in CHAPTERS:
        names: dict[str, Any] = {}
        exec(compile(read_stub(chapter), "stub.py", "exec"), names)
        for exercise in list_exercises(chapter):
            if not exercise.defect:
                assert grading.grade(exercise, names[exercise.name]) == "not written yet"
            elif "verify" not in exercise.name:  # slow, and the same as a planted error
                assert grading.grade(exercise, names[exercise.name]) is not None


def test_each_chapter_has_two_exercises_and_a_defect() -> None:
    for chapter in CHAPTERS:
        exercises = list_exercises(chapter)
        assert len(exercises) >= 2 and sum(each.defect for each in exercises) >= 1
    assert PLANTED.keys() == set(NAMES)
    assert all(len(planted) >= 3 for planted in PLANTED.values())
