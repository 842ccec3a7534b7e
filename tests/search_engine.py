"""A stand-in for OpenSearch and Elasticsearch: a server on 127.0.0.1 that understands the requests of Haystack's stores.

It records every request, stores documents, and answers searches by filters, words and inner products. What the clients send and
expect was recorded from opensearch-py 3.2 and elasticsearch 8.19; a part of their language that is not here is an error 400.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np

VERSIONS = {"opensearch": "3.2.0", "elasticsearch": "8.19.3"}


class SearchEngine:
    """Context manager: a running server.

    Attributes:
        url: Its address.
        requests: (method, path, body) of every request; the body of a _bulk request is a list.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.indices: dict[str, dict[str, dict[str, Any]]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                path = self.path.split("?")[0]
                lines = [json.loads(line) for line in text.splitlines() if line] if path.endswith("_bulk") else None
                body = lines if lines is not None else json.loads(text or "null")
                engine.requests.append((self.command, path, body))
                try:
                    status, result = engine.respond(self.command, path.strip("/").split("/"), body)
                except (KeyError, ValueError) as error:
                    status, result = 400, {"error": {"type": "unsupported", "reason": repr(error)}, "status": 400}
                data = b"" if self.command == "HEAD" else json.dumps(result).encode()
                self.send_response(status)
                # Elasticsearch's client insists on its own content type and product header.
                accepted = self.headers.get("Accept", "application/json")
                self.send_header("Content-Type", accepted if "elasticsearch" in accepted else "application/json")
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def respond(self, method: str, path: list[str], body: Any) -> tuple[int, Any]:
        """Return the status and the body of the response to a request."""
        name, action = path[0], path[1] if len(path) > 1 else ""
        if name == "":
            return 200, {
                "name": "stand-in",
                "version": {"number": VERSIONS[self.kind]},
                "tagline": "You Know, for Search",
            }
        if not action and method == "HEAD":
            return (200 if name in self.indices else 404), None
        if not action and method == "DELETE":
            del self.indices[name]
            return 200, {"acknowledged": True}
        if not action and method == "PUT":
            self.indices[name] = {}
            return 200, {"acknowledged": True, "index": name}
        if name == "_bulk" or action == "_bulk":
            return 200, self.bulk(body, None if name == "_bulk" else name)
        documents = self.indices[name]
        if action == "_mapping":
            return 200, {name: {"mappings": {"properties": {}}}}
        if action == "_count":
            return 200, {"count": len(documents)}
        if action == "_search":
            hits = self.search(documents, body or {})
            hits = [{"_index": name, "_id": i, "_score": score, "_source": documents[i]} for i, score in hits]
            total = {"value": len(hits), "relation": "eq"}
            return 200, {"took": 1, "timed_out": False, "hits": {"total": total, "hits": hits}}
        raise ValueError(f"{method} /{'/'.join(path)}")

    def bulk(self, lines: list[Any], index: str | None) -> dict[str, Any]:
        """Run a bulk request: create, index and delete."""
        items, rows = [], iter(lines)
        for row in rows:
            ((action, target),) = row.items()
            documents, name = self.indices[target.get("_index", index)], target["_id"]
            result = {"_id": name, "status": 200}
            if action == "delete":
                if documents.pop(name, None) is None:
                    result = {"_id": name, "status": 404, "result": "not_found"}
            else:
                source = next(rows)
                if action == "create" and name in documents:
                    result |= {
                        "status": 409,
                        "error": {"type": "version_conflict_engine_exception", "reason": "exists"},
                    }
                else:
                    documents[name] = source
            items.append({action: result})
        return {"took": 1, "errors": any("error" in next(iter(item.values())) for item in items), "items": items}

    def search(self, documents: dict[str, dict[str, Any]], body: dict[str, Any]) -> list[tuple[str, float]]:
        """Return (id, score) of the best documents of a query."""
        scores = {}
        for name, source in documents.items():
            score = 0.0
            if "query" in body:
                score = match(body["query"], source)
            if score is not None and (knn := body.get("knn")):  # Elasticsearch
                condition = knn.get("filter")
                clauses = condition if isinstance(condition, list) else [condition] if condition else []
                allowed = all(match(clause, source) is not None for clause in clauses)
                score = inner_product(knn["query_vector"], source[knn["field"]]) if allowed else None
            if score is not None:
                scores[name] = score
        limit = min(body.get("size", 10), body.get("knn", {}).get("k", 10))
        return sorted(scores.items(), key=lambda entry: -entry[1])[:limit]


def inner_product(a: list[float], b: list[float]) -> float:
    return float(np.dot(a, b))


def match(query: dict[str, Any], source: dict[str, Any]) -> float | None:
    """Return the score of a document for a query, None if it does not match."""
    ((kind, value),) = query.items()
    if kind == "bool":
        must = [*clauses(value, "must"), *clauses(value, "filter")]
        scores = [match(clause, source) for clause in must]
        scores += [0.0 if match(clause, source) is None else None for clause in clauses(value, "must_not")]
        if should := clauses(value, "should"):
            scores.append(max((s for clause in should if (s := match(clause, source)) is not None), default=None))
        return None if None in scores else float(sum(filter(None, scores)))
    if kind == "match_all":
        return 0.0
    if kind == "multi_match":
        words = re.findall(r"\w+", source["content"].lower())
        score = sum(words.count(word) for word in re.findall(r"\w+", value["query"].lower()))
        return float(score) if score else None
    if kind == "knn":
        return inner_product(value["embedding"]["vector"], source["embedding"])
    ((field, wanted),) = value.items()
    found = source.get(field)
    if kind == "term":
        wanted = wanted["value"] if isinstance(wanted, dict) else wanted
        return 0.0 if found == wanted else None
    if kind == "terms":
        return 0.0 if found in wanted else None
    if kind == "match":
        return 0.0 if found == (wanted["query"] if isinstance(wanted, dict) else wanted) else None
    if kind == "range":
        tests = {
            "gt": lambda a, b: a > b,
            "gte": lambda a, b: a >= b,
            "lt": lambda a, b: a < b,
            "lte": lambda a, b: a <= b,
        }
        return 0.0 if found is not None and all(tests[name](found, limit) for name, limit in wanted.items()) else None
    raise ValueError(kind)


def clauses(value: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name, [])
    return found if isinstance(found, list) else [found]
