"""Conditions of the beam and the detector, and how they drift: data, so that a site file can hold them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Conditions(_Frozen):
    """Beam and detector conditions of the simulated CookieBox. Energies and widths are in bins of `energy_bins`."""

    pulses_mean: float = Field(3.0, ge=0, description="mean number of SASE sub-pulses a shot (Poisson)")
    photon_energy_bin: float = Field(64.0, description="mean centre of the photo line before streaking")
    photon_jitter_bin: float = Field(4.0, ge=0, description="shot-to-shot spread of a sub-pulse's centre, 1 sigma")
    line_width_bin: float = Field(2.0, gt=0, description="width of a sub-pulse's line, 1 sigma")
    kick_bin: float = Field(32.0, ge=0, description="amplitude of the streaking kick")
    hits_per_pulse: float = Field(
        200.0, ge=0, description="mean counts of a sub-pulse of amplitude 1, over all channels"
    )
    intensity: float = Field(1.0, ge=0, description="factor on all photo lines")
    polarisation: float = Field(0.0, ge=-1, le=1, description="anisotropy: 1 + polarisation * cos(2 (theta - angle))")
    polarisation_angle_rad: float = Field(0.0, description="angle of the polarisation")
    gain: float = Field(1.0, ge=0, description="factor on every channel")
    gain_spread: float = Field(0.0, ge=0, description="fixed channel-to-channel spread, 1 sigma, drawn from the seed")
    dead_channels: tuple[int, ...] = Field((), description="channels that count nothing")
    dark_per_bin: float = Field(0.0005, ge=0, description="dark counts a bin and shot")
    secondary_fraction: float = Field(
        0.02, ge=0, description="broad secondary electrons, as a share of the line's counts"
    )
    bin_offset: int = Field(0, description="bins by which the detector displaces the counts against the truth")
    streaking_period_fs: float = Field(4.0, gt=0, description="optical period of the streaking laser: 1.2 um is 4.0 fs")


class DriftStep(_Frozen):
    """Conditions move linearly from their former values to these between two frame numbers."""

    from_frame: int = Field(ge=0, description="number of the frame where the step begins")
    to_frame: int | None = Field(None, description="where it ends; not set: a sudden step at `from_frame`")
    set: dict[str, float | list[int]] = Field(description="keys of `conditions` and their new values")

    @model_validator(mode="after")
    def _known(self) -> DriftStep:
        if unknown := sorted(set(self.set) - set(Conditions.model_fields)):
            raise ValueError(f"drift sets {', '.join(unknown)}, which conditions does not have")
        if self.to_frame is not None and self.to_frame < self.from_frame:
            raise ValueError("to_frame lies before from_frame")
        return self
