"""Prints HTML with a script, for whoever looks at the report in a browser."""

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    main()
    raise SystemExit("</pre></td><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}")
