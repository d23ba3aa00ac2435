"""List these scripts, or run one: see __init__.py."""
import os
import pathlib
import sys


def main(words: list[str]) -> None:
    paths = sorted(pathlib.Path(__file__).parent.glob("*.sh"))
    if not words:
        print("\n".join(path.stem for path in paths))
        return
    found = [path for path in paths if words[0] in path.stem]
    exact = [path for path in found if path.stem == words[0]] or found
    if len(exact) != 1:
        sys.exit(f"{words[0]}: names {len(found)} scripts (without NAME all are listed)")
    print(exact[0], flush=True)
    os.execvp("bash", ["bash", str(exact[0])])


if __name__ == "__main__":
    main(sys.argv[1:])
