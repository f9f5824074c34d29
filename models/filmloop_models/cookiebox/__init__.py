"""The CookieBox: 16 angles around an interaction point, an electron spectrum in each."""
