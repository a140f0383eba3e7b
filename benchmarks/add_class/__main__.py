"""`python -m benchmarks.add_class`: see `benchmarks.add_class.command`."""

from benchmarks.add_class.command import main

if __name__ == "__main__":
    raise SystemExit(main())
