"""`python -m benchmarks.ladder`: see `benchmarks.ladder.command`."""

from benchmarks.ladder.command import main

raise SystemExit(main())
