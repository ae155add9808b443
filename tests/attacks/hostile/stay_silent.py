"""Never prints a progress line, so that its training time would never begin."""

import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    time.sleep(plan["stray_seconds"])
    claim("sat it out")
    main()
