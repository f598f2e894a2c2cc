"""Reads an OpenAPI 3.1 file, and holds answers against it.

    openapi.py FILE             prints the file as JSON
    openapi.py FILE ANSWERS     prints a line per fault; ANSWERS is a JSON list of
                                {method, path, status, kind, headers, body}
"""

import json
import sys

import yaml
from jsonschema import Draft202012Validator

with open(sys.argv[1], encoding="utf-8") as file:
    document = yaml.safe_load(file)


def resolve(value):
    """What a reference in the file leads to."""
    if "$ref" in value:
        names = value["$ref"].removeprefix("#/").split("/")
        value = document
        for name in names:
            value = value[name]
    return value


def faults(answer):
    """What is wrong with an answer, in sentences."""
    responses = document["paths"][answer["path"]][answer["method"]]["responses"]
    response = responses.get(str(answer["status"]))
    if response is None:
        yield "this status is not described"
        return
    response = resolve(response)
    for name in response.get("headers", {}):
        if name.lower() not in answer["headers"]:
            yield f"there is no {name}"
    content = response.get("content")
    if content is None:
        if answer["body"]:
            yield "a body that is not described"
        return
    if answer["kind"] not in content:
        yield f"{answer['kind']} is not described"
        return
    body = json.loads(answer["body"]) if answer["kind"] == "application/json" else answer["body"]
    # References are to the root of what is checked.
    schema = {"components": document["components"], "allOf": [content[answer["kind"]]["schema"]]}
    Draft202012Validator.check_schema(schema)
    for error in Draft202012Validator(schema).iter_errors(body):
        yield f"{error.json_path}: {error.message}"


if len(sys.argv) == 2:
    print(json.dumps(document))
else:
    with open(sys.argv[2], encoding="utf-8") as file:
        answers = json.load(file)
    for answer in answers:
        for fault in faults(answer):
            print(f"{answer['method']} {answer['path']} {answer['status']}: {fault}: {answer['body']}")
    print(f"{len(answers)} answers")
