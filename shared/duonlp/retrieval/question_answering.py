"""Answer questions from a document store: a retriever finds documents, a ranker may sort them again, a reader finds the answers.

The method ``run`` and its results have the names of Haystack's ExtractiveQAPipeline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from duonlp.errors import InputError
from duonlp.retrieval.document import Filters, Ranker, Retriever
from duonlp.retrieval.reader import Reader, check_count, check_queries
from duonlp.util.suggestions import nearest

PARAMETERS = {"Retriever": ("top_k", "filters"), "Ranker": ("top_k",), "Reader": ("top_k",)}
"""Parameters of each node of the pipeline."""


class ExtractiveQA:
    """A retriever and a reader, optionally with a ranker between them.

    Args:
        retriever: Finds documents.
        reader: Finds answers in them.
        ranker: Sorts the documents found; the best ones are read.

    Attributes:
        nodes: The parts by name: "Retriever", "Reader" and, if there is one, "Ranker".

    Raises:
        InputError: An argument is of another kind.
    """

    def __init__(self, retriever: Retriever, reader: Reader, ranker: Ranker | None = None) -> None:
        if not callable(getattr(retriever, "retrieve", None)):
            raise InputError(
                f"retriever is a {type(retriever).__name__}; give one with the method retrieve, such as BM25Retriever"
            )
        if not callable(getattr(reader, "read_with_gaps", None)):
            raise InputError(f"reader is a {type(reader).__name__}; give a duonlp.retrieval.Reader")
        if ranker is not None and not callable(getattr(ranker, "rank_all", None)):
            raise InputError(
                f"ranker is a {type(ranker).__name__}; give one with the method rank, such as CrossEncoderRanker"
            )
        self.retriever, self.reader, self.ranker = retriever, reader, ranker

    @property
    def nodes(self) -> dict[str, Any]:
        """The parts of the pipeline by name."""
        ranker = {} if self.ranker is None else {"Ranker": self.ranker}
        return {"Retriever": self.retriever, **ranker, "Reader": self.reader}

    def run(self, query: str, params: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Answer a question.

        Args:
            query: The question.
            params: Parameters by node, such as ``{"Retriever": {"top_k": 10, "filters": {"field": "meta.item_id", "operator":
                "==", "value": "B00001P4ZH"}}, "Reader": {"top_k": 3}}``. Filters may also be in the older form ``{"item_id":
                ["B00001P4ZH"]}``. What is missing has the default of the part.

        Returns:
            A dict with the keys "query", the question; "answers", list of :class:`Answer`, best first; "no_ans_gap", by how much
            the logit of the best answer exceeds that of no answer in the document where it does so most (below 0, the model
            prefers no answer in every document; None if there is no answer); and "documents", the documents read, best first.
            Answers and documents are empty if no document matches the query.

        Raises:
            InputError: The question, a node or a parameter is invalid, or the store is empty.
        """
        if not isinstance(query, str):
            raise InputError(f"query is {query!r:.60} ({type(query).__name__}); give one question, or use run_batch")
        return self.run_batch([query], params)[0]

    def run_batch(
        self, queries: Sequence[str], params: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Answer several questions; their documents are read in one call of the reader's pipeline.

        Args:
            queries: The questions.
            params: See :meth:`run`; ``filters`` may be a list with one filter, or None, per question.

        Raises:
            InputError: See :meth:`run`.
        """
        queries = check_queries(queries)
        checked = self._check_params(params, len(queries))
        if not queries:
            return []
        found = self.retriever.retrieve(queries, **checked["Retriever"])
        if self.ranker is not None:
            found = self.ranker.rank_all(queries, found, **checked["Ranker"])
        read = self.reader.read_with_gaps(queries, found, **checked["Reader"])
        return [
            {"query": query, "no_ans_gap": None if gap is None else -gap, "answers": answers, "documents": documents}
            for query, documents, (answers, gap) in zip(queries, found, read, strict=True)
        ]

    def _check_params(self, params: Any, count: int) -> dict[str, dict[str, Any]]:
        """Return the parameters of every node, with filters in today's form.

        Raises:
            InputError: A node or parameter does not exist, or has an invalid value.
        """
        nodes = self.nodes
        if not isinstance(params or {}, Mapping):
            raise InputError(f'params is {params!r:.60}; give a dict by node, such as {{"Retriever": {{"top_k": 10}}}}')
        for node, values in (params or {}).items():
            if node not in nodes:
                raise InputError(
                    f"params has the node {node!r}; this pipeline has {', '.join(nodes)}{nearest(str(node), nodes)}"
                )
            if not isinstance(values, Mapping):
                raise InputError(f'params[{node!r}] is {values!r:.60}; give a dict, such as {{"top_k": 10}}')
            for name in values:
                if name not in PARAMETERS[node]:
                    allowed = PARAMETERS[node]
                    raise InputError(
                        f"params[{node!r}] has {name!r}; {node} takes {', '.join(allowed)}{nearest(str(name), allowed)}"
                    )
            check_count(f"params[{node!r}]['top_k']", values.get("top_k"), optional=True)
        checked = {
            node: {k: v for k, v in (params or {}).get(node, {}).items() if v is not None} for node in PARAMETERS
        }
        filters = checked["Retriever"].get("filters")
        if isinstance(filters, Mapping):
            checked["Retriever"]["filters"] = current_filters(filters)
        elif filters is not None:
            if isinstance(filters, str) or not isinstance(filters, Sequence):
                raise InputError(f"filters are {filters!r:.60}; give one as a dict, or a list with one per question")
            if len(filters) != count:
                raise InputError(
                    f"there are {len(filters)} filters for {count} questions; give one for all, or one for each"
                )
            checked["Retriever"]["filters"] = [None if entry is None else current_filters(entry) for entry in filters]
        return checked


def current_filters(filters: Filters) -> Filters:
    """Return filters in Haystack's current language; those of its first version become a conjunction.

    ``{"item_id": ["B1", "B2"], "split": "train"}``, as in Haystack 0.x, selects documents whose meta item_id is B1 or B2 and
    whose split is train. Filters that have an operator already are returned as they are.

    Args:
        filters: A filter.

    Raises:
        InputError: It is not a dict, or in the older form has a value that is neither a text, a number nor a list of those.
    """
    if not isinstance(filters, Mapping):
        raise InputError(
            f'a filter is {filters!r:.60}; give a dict, such as {{"field": "meta.x", "operator": "==", "value": 1}}'
        )
    if "operator" in filters or "conditions" in filters or not filters:
        return filters
    conditions = []
    for name, value in filters.items():
        values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        if (
            not isinstance(name, str)
            or name.startswith("$")
            or not all(isinstance(v, (str, int, float)) for v in values)
        ):
            raise InputError(
                f'a filter has {name!r}: {value!r:.60}; write {{"field": "meta.NAME", "operator": "==", "value": ...}}, or '
                "{NAME: [values]}"
            )
        field = name if name.startswith("meta.") else f"meta.{name}"
        conditions.append({"field": field, "operator": "in", "value": values})
    return conditions[0] if len(conditions) == 1 else {"operator": "AND", "conditions": conditions}
