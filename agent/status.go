package agent

import (
	"time"

	"gatepost"
	"gatepost/buffer"
)

// Report is how everything is: what `gatepost status` shows.
type Report struct {
	Agent   string               `json:"agent"`
	Version string               `json:"version"`
	Uptime  float64              `json:"uptime_s"`
	Clock   string               `json:"clock"`
	Devices []DeviceReport       `json:"devices"`
	Uplinks []UplinkReport       `json:"uplinks"`
	Buffer  buffer.Stats         `json:"buffer"`
	Board   gatepost.BoardHealth `json:"board"`
}

// DeviceReport is how one device is.
type DeviceReport struct {
	ID          gatepost.DeviceID `json:"id"`
	Driver      string            `json:"driver"`
	State       gatepost.State    `json:"state"`
	Since       time.Time         `json:"since"`
	Reason      string            `json:"reason,omitempty"`
	Hint        string            `json:"hint,omitempty"`
	Serial      string            `json:"serial,omitempty"`
	Model       string            `json:"model,omitempty"`
	Firmware    string            `json:"firmware,omitempty"`
	Doors       int               `json:"doors"`
	Timezone    string            `json:"timezone"`
	LastContact time.Time         `json:"last_contact,omitzero"`
	SkewMS      *int64            `json:"skew_ms,omitempty"`
}

// UplinkReport is how one uplink is.
type UplinkReport struct {
	ID      string           `json:"id"`
	Driver  string           `json:"driver"`
	State   string           `json:"state"` // online, backoff or misconfigured
	Since   time.Time        `json:"since"`
	Reason  string           `json:"reason,omitempty"`
	Hint    string           `json:"hint,omitempty"`
	Backlog gatepost.Backlog `json:"backlog"`
}

// Report is how everything is now.
func (a *Agent) Report() Report {
	stats := a.store.Stats()
	r := Report{Agent: a.opts.ID, Version: a.opts.Version, Uptime: a.uptime().Seconds(), Clock: a.clock.word(),
		Devices: a.Devices(), Uplinks: []UplinkReport{}, Buffer: stats, Board: boardHealth(a.opts.DataDir)}
	for _, u := range a.uplinkList() {
		r.Uplinks = append(r.Uplinks, u.report(stats.Uplinks[u.conf.ID]))
	}
	return r
}

// Devices is how the devices are now, by id.
func (a *Agent) Devices() []DeviceReport {
	rs := []DeviceReport{}
	for _, d := range a.deviceList() {
		rs = append(rs, d.report())
	}
	return rs
}

func (d *device) report() DeviceReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := DeviceReport{ID: d.conf.ID, Driver: d.conf.Driver, State: d.state, Since: d.since, Reason: d.reason, Hint: d.hint,
		Serial: d.info.Serial, Model: d.info.Model, Firmware: d.info.Firmware, Doors: d.info.Doors, Timezone: d.conf.ZoneName,
		LastContact: d.lastContact}
	if d.skewSet {
		r.SkewMS = new(d.skew.Milliseconds())
	}
	return r
}

func (u *uplink) report(b gatepost.Backlog) UplinkReport {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := UplinkReport{ID: u.conf.ID, Driver: u.conf.Driver, State: "online", Since: u.since, Reason: u.reason, Hint: u.hint, Backlog: b}
	switch {
	case u.link != nil:
	case u.class == gatepost.Misconfigured:
		r.State = "misconfigured"
	default:
		r.State = "backoff"
	}
	return r
}
