"""The headers that tell browsers how far to trust an answer.

The pages load scripts, styles and images from this server alone, and no other site may frame them, so markup that is
injected into one can do nothing. Sources: W3C Content Security Policy Level 3; the WHATWG's Fetch for nosniff.
"""

from starlette.datastructures import MutableHeaders

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}

_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{directive} {source}" for directive, source in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def secure(headers: MutableHeaders) -> None:
    """Add the security headers to those of an answer."""
    headers.update(_HEADERS)
