"""Write the parts of the documents that are made from the code: `python -m tests.docs.update`."""

from tests.docs.documents import made_parts


def main() -> None:
    """Rewrite every part."""
    for document, name, made in made_parts():
        text = document.read_text(encoding="utf-8")
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        document.write_text(before + start + made + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
