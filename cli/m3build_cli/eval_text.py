"""The results of an evaluation, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3build.evaluation.evaluate import Evaluation

WAYS = {
    "none": "no memories",
    "quantized": "memories as stored",
    "exact": "the same, unquantized",
    "random": "memories of random references",
    "text": "references as text",
    "dense": "all keys and values",
}
SEARCHES = {
    "index": "the bank's index",
    "exact": "scan of all embeddings",
    "bm25_words": "BM25 of words",
    "bm25_ngrams": "BM25 of character n-grams",
}


def describe_evaluation(bank: str, evaluation: Evaluation) -> str:
    """A table of losses, a table of retrieval, cost, the conditions, and a plain sentence."""
    results = evaluation.results
    lines = [f"{bank}, version {results['bank']['version']}"]
    if "loss" in results:
        lines += ["", *_losses(results), "", results["conclusion"]]
    if "retrieval" in results:
        lines += ["", *_retrieval(results["retrieval"])]
    if "cost" in results:
        lines += ["", *_cost(results["cost"])]
    if evaluation.outcomes:
        lines.append("")
    for outcome in evaluation.outcomes:
        value = "not known" if outcome.value is None else f"{outcome.value:.4f}"
        lines.append(f"{'passed' if outcome.passed else 'FAILED'}  {outcome.condition}: {value}")
    if evaluation.stored is not None:
        lines += ["", f"kept in the bank as version {evaluation.stored}"]
    return "\n".join(lines)


def _losses(results: Mapping[str, Any]) -> Iterator[str]:
    about = results["text"]
    yield (
        f"{results['tokens']:,} tokens of {results['documents']:,} documents in windows of "
        f"{about['window_tokens']:,}; each {about['query_tokens']} tokens read {about['references']} "
        "references, "
        + {
            "previous": "retrieved by the tokens before them",
            "own": "retrieved by themselves",
            "file": "as given",
        }[about["query"]]
        + (", each followed by what its document goes on with" if about["continuations"] else "")
    )
    if about["left_out"]:
        yield f"{about['left_out']:,} times a reference was left out, since the text holds it"
    yield f"{'':<30} {'nats/token':>10} {'bits/char':>10} {'gain':>9}   95 % interval"
    for name, words in WAYS.items():
        gain = results["gain"][name]
        shown = "" if name == "none" else f" {gain['mean']:>+9.4f}   {_interval(gain)}"
        yield (
            f"{words:<30} {results['loss'][name]:>10.4f} {results['bits_per_character'][name]:>10.4f}{shown}"
        )
    over, none = results["gain_over_random"], results["none"]
    yield f"{'gain over random references':<52} {over['mean']:>+9.4f}   {_interval(over)}"
    if control := results.get("control"):
        gained = control["gain_over"]
        yield (
            f"{'control, plain context':<30} {control['loss']:>10.4f}   memories save "
            f"{gained['mean']:+.4f}   {_interval(gained)}"
        )
    taken = "the plain context" if none["taken"] == "plain" else "the context after the reference BOS"
    yield (
        f"no memories: {none['plain']:.4f} for the plain context, {none['reference_bos']:.4f} after the "
        f"reference BOS; gains are against {taken}, the better one"
    )
    fit = about["text_references"]
    if fit["fitted"] < fit["wanted"]:
        yield (
            f"as text: {fit['fitted']:,} of {fit['wanted']:,} references had room before the context within "
            "the model's positions"
        )
    if results["gain_kept"] is not None:
        yield f"stored memories keep {results['gain_kept']:.1%} of the gain of unquantized ones"


def _interval(gain: Mapping[str, Any]) -> str:
    if gain["low"] is None:
        return "none: one document"
    return f"{gain['low']:+.4f} to {gain['high']:+.4f}"


def _retrieval(retrieval: Mapping[str, Any]) -> Iterator[str]:
    missing = retrieval["missing_documents"]
    yield f"{retrieval['questions']:,} questions" + (
        f"; {missing:,} documents that answer are not in the bank" if missing else ""
    )
    columns = ("hit@1", "hit@5", "hit@10", "mrr")
    yield f"{'':<30}" + "".join(f"{column:>9}" for column in columns)
    for name, words in SEARCHES.items():
        scores = retrieval[name]
        if scores is not None:
            yield f"{words:<30}" + "".join(f"{scores[column]:>9.4f}" for column in columns)
    yield from retrieval["notes"]


def _cost(cost: Mapping[str, Any]) -> Iterator[str]:
    speeds = cost["tokens_per_second"]
    if cost["reading_cost"] is not None:
        yield (
            f"cost: {speeds['none']:,.0f} tokens/s without memories, {speeds['quantized']:,.0f} with them "
            f"({cost['reading_cost']:.1%} less), from a warm cache"
        )
    if cost["retrieval_ms"]:
        stages = ", ".join(f"{name} {value:.2f}" for name, value in cost["retrieval_ms"].items())
        yield f"a retrieval in milliseconds: {stages}"
    cache = cost["cache"]
    yield f"{cost['bytes_read']:,} bytes read; cache: {cache['hits']:,} hits, {cache['misses']:,} misses"
