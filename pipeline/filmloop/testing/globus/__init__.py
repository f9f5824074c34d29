"""The hosted services of Globus, emulated over their wire protocol on loopback, with the unmodified SDKs in front."""
