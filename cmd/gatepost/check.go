package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"gatepost"
	"gatepost/agent"
	"gatepost/agent/config"
)

// Words of a finding.
const (
	fine = "ok"
	odd  = "warn" // it works, or will by itself
	bad  = "fail"
)

// finding is what check found out about one thing.
type finding struct {
	What  string `json:"what"`
	State string `json:"state"`
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"`
}

const (
	checkWithin = 20 * time.Second // for one broker or terminal
	diskLow     = 100              // MiB
	skewMost    = time.Minute      // of a terminal's clock
)

// check looks at everything that must be right, in the order in which things depend on each other. Where an agent runs,
// it is asked: two cannot talk to the same terminal or hold the same session at a broker.
func check(ctx context.Context, f *flags) error {
	path, asJSON := f.configFlag(), f.jsonFlag()
	if _, err := f.take(); err != nil {
		return err
	}
	c, err := loadConfig(*path, config.Kit{})
	if err != nil {
		if !*asJSON {
			return err
		}
		if err := writeFindings(configFindings(err)); err != nil {
			return err
		}
		return exitError{errSaid, exitUsage}
	}
	found := make(chan finding)
	go func() {
		defer close(found)
		checkSite(ctx, c, found)
	}()
	width := len("config")
	for _, u := range c.Uplinks {
		width = max(width, len("uplink "+u.ID))
	}
	for _, d := range c.Devices {
		width = max(width, len("device ")+len(d.ID))
	}
	failed := false
	all := []finding{}
	for f := range found {
		failed = failed || f.State == bad
		if *asJSON {
			all = append(all, f)
		} else {
			f.print(os.Stdout, width)
		}
	}
	if *asJSON {
		if err := writeFindings(all); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case failed && !*asJSON:
		return errors.New("not everything is right, see above")
	case failed:
		return errSaid
	}
	return nil
}

func (f finding) print(w io.Writer, width int) {
	fmt.Fprintf(w, "%-4s  %-*s  %s\n", f.State, width, f.What, f.Text)
	if f.Hint != "" {
		fmt.Fprintf(w, "      %-*s  hint: %s\n", width, "", f.Hint)
	}
}

func writeFindings(fs []finding) error {
	raw, err := json.Marshal(fs)
	if err != nil {
		return err
	}
	return printJSON(raw)
}

// configFindings tells a config that cannot be used.
func configFindings(err error) []finding {
	ms, ok := errors.AsType[config.Mistakes](err)
	if !ok {
		return []finding{{"config", bad, err.Error(), gatepost.HintOf(err)}}
	}
	var fs []finding
	for _, m := range ms {
		fs = append(fs, finding{"config", bad, m.String(), ""})
	}
	return fs
}

// checkSite sends what it finds, in order.
func checkSite(ctx context.Context, c *config.Config, found chan<- finding) {
	found <- finding{"config", fine, fmt.Sprintf("%s: agent %s, devices %d, uplinks %d", c.Path, c.Agent.ID, len(c.Devices), len(c.Uplinks)), ""}
	for _, w := range c.Warnings {
		found <- finding{"config", odd, w.String(), ""}
	}
	found <- checkClock(c)
	found <- checkDisk(c.Agent.DataDir)

	var r agent.Report
	raw, err := newClient(c.Agent.DataDir).get(ctx, "/v1/status")
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	switch {
	case err == nil:
		found <- finding{"agent", fine, "is running, up " + span(time.Duration(r.Uptime*float64(time.Second))) + "; what follows is what it says", ""}
		checkReport(c, &r, found)
		return
	case !errors.Is(err, errNoAgent):
		found <- finding{"agent", bad, err.Error(), gatepost.HintOf(err)}
		return
	}
	found <- finding{"agent", fine, "is not running; trying brokers and terminals without it", ""}
	var pending []<-chan finding
	for _, u := range c.Uplinks {
		pending = append(pending, later(func() finding { return checkUplink(ctx, c, u) }))
	}
	for _, d := range c.Devices {
		pending = append(pending, later(func() finding { return checkDevice(ctx, d) }))
	}
	for _, p := range pending {
		found <- <-p
	}
}

// later works in the background and hands its finding over when it is wanted.
func later(find func() finding) <-chan finding {
	c := make(chan finding, 1)
	go func() { c <- find() }()
	return c
}

// checkReport compares what a running agent says with what the config wants.
func checkReport(c *config.Config, r *agent.Report, found chan<- finding) {
	const reload = "send it SIGHUP, then it reads the config again"
	uplinks := map[string]agent.UplinkReport{}
	for _, u := range r.Uplinks {
		uplinks[u.ID] = u
	}
	for _, want := range c.Uplinks {
		u, ok := uplinks[want.ID]
		f := finding{"uplink " + want.ID, fine, u.State, u.Hint}
		switch {
		case !ok:
			f.State, f.Text, f.Hint = odd, "the running agent does not know it yet", reload
		case u.State != "online":
			f.State, f.Text = bad, u.State+": "+u.Reason
		case u.Backlog.Records > 0:
			f.Text = fmt.Sprintf("online, %d records waiting", u.Backlog.Records)
		}
		found <- f
	}
	devices := map[gatepost.DeviceID]agent.DeviceReport{}
	for _, d := range r.Devices {
		devices[d.ID] = d
	}
	for _, want := range c.Devices {
		d, ok := devices[want.ID]
		f := finding{"device " + string(want.ID), bad, string(d.State), d.Hint}
		if d.Reason != "" {
			f.Text += ": " + d.Reason
		}
		switch {
		case !ok:
			f.State, f.Text, f.Hint = odd, "the running agent does not know it yet", reload
		case d.State == gatepost.StateOnline:
			f = onlineDevice(d.ID, gatepost.Info{Serial: d.Serial, Model: d.Model, Firmware: d.Firmware}, d.SkewMS)
		case d.State == gatepost.StateDisabled, d.State == gatepost.StatePaused, d.State == gatepost.StateConnecting:
			f.State = odd
		}
		found <- f
	}
}

func onlineDevice(id gatepost.DeviceID, i gatepost.Info, skewMS *int64) finding {
	f := finding{"device " + string(id), fine, fmt.Sprintf("online: %s, serial number %s, firmware %s", dash(i.Model), dash(i.Serial), dash(i.Firmware)), ""}
	if skewMS == nil {
		return f
	}
	skew := time.Duration(*skewMS) * time.Millisecond
	if skew.Abs() > skewMost {
		f.State = odd
		f.Text += fmt.Sprintf("; its clock is off by %v", skew.Round(time.Second))
		f.Hint = "whole quarter-hours mean a wrong timezone in the config; else set the terminal's clock"
		return f
	}
	f.Text += fmt.Sprintf("; its clock is off by %v", skew.Round(100*time.Millisecond))
	return f
}

func checkClock(c *config.Config) finding {
	f := finding{What: "clock", State: fine, Text: "synchronised, " + time.Now().In(c.Agent.Zone).Format("2006-01-02 15:04:05 MST")}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	switch {
	case c.Agent.Clock == config.ClockTrusted:
		f.Text = "trusted, because agent.clock says so; it is " + time.Now().In(c.Agent.Zone).Format("2006-01-02 15:04:05 MST")
	case err != nil:
		f.State, f.Text = odd, "the kernel does not say whether it is synchronised: "+err.Error()
	case state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0:
		f.State, f.Text = odd, "not synchronised; records say so, and commands that open doors need the challenge of the newest heartbeat"
		f.Hint = "let systemd-timesyncd or chrony run and reach a time server (timedatectl shows it)"
	}
	return f
}

func checkDisk(dir string) finding {
	f := finding{What: "disk", State: fine}
	at := dir
	for { // the directory itself is made at the first start
		if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
			break
		}
		at = filepath.Dir(at)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return finding{"disk", bad, fmt.Sprintf("%s: %v", at, err), ""}
	}
	free := int64(fs.Bavail) * int64(fs.Bsize) >> 20
	f.Text = fmt.Sprintf("%s: %d MiB free", dir, free)
	if at != dir {
		f.Text += ", made at the first start"
	}
	switch err := unix.Access(at, unix.W_OK|unix.X_OK); {
	case errors.Is(err, unix.EROFS):
		f.State, f.Text = bad, dir+" is on a read-only disk"
		f.Hint = "a worn SD card turns read-only (dmesg says so); else mount it read-write or name another agent.data_dir"
	case err != nil:
		f.State, f.Text = bad, fmt.Sprintf("this user may not write to %s", at)
		f.Hint = "run check with sudo or as the user that runs gatepost, or name another agent.data_dir"
	case free < diskLow:
		f.State = odd
		f.Hint = "free some space: when the disk is full, terminals keep what they have and nothing new is taken"
	}
	return f
}

// checkUplink connects as the agent would, then goes. Commands that come meanwhile are not confirmed, so that the broker
// keeps them for the agent.
func checkUplink(ctx context.Context, c *config.Config, u config.Uplink) finding {
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	f := finding{What: "uplink " + u.ID, State: fine, Text: "connected, login accepted"}
	link, err := u.Uplink.Dial(ctx, checkHello(c), func(gatepost.Delivery) {})
	if err != nil {
		f.State, f.Text, f.Hint = bad, err.Error(), gatepost.HintOf(err)
		return f
	}
	if err := link.Close(ctx); err != nil {
		f.State, f.Text = odd, "connected, but the goodbye failed: "+err.Error()
	}
	return f
}

// checkHello is a birth document of what the config knows; the agent replaces it when it starts.
func checkHello(c *config.Config) gatepost.Hello {
	b := gatepost.Birth{Agent: c.Agent.ID, Version: version, Board: gatepost.Board{OS: runtime.GOOS, Arch: runtime.GOARCH},
		Started: time.Now().UTC(), Zone: c.Agent.ZoneName, Devices: []gatepost.BirthDevice{}, Verbs: []string{}, Verify: "challenge"}
	for _, d := range c.Devices {
		b.Devices = append(b.Devices, gatepost.BirthDevice{ID: d.ID, Driver: d.Driver, Zone: d.ZoneName, Verbs: []string{},
			TTL: map[string]float64{}, State: gatepost.StateConnecting})
	}
	return gatepost.Hello{Version: version, Session: rand.Text()[:12], Challenge: rand.Text()[:16], Birth: b}
}

func checkDevice(ctx context.Context, d config.Device) finding {
	f := finding{What: "device " + string(d.ID), State: odd, Text: "disabled in the config"}
	if !d.Enabled {
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	s, err := d.Device.Open(ctx)
	if err != nil {
		f.State, f.Text, f.Hint = bad, err.Error(), gatepost.HintOf(err)
		return f
	}
	defer s.Close()
	return onlineDevice(d.ID, s.Info(), measureSkew(ctx, s, d.Zone))
}

// measureSkew is how far the terminal's clock is ahead, nil where it does not tell.
func measureSkew(ctx context.Context, s gatepost.Session, zone *time.Location) *int64 {
	c, ok := s.(gatepost.Clock)
	if !ok {
		return nil
	}
	began := time.Now()
	wall, err := c.Time(ctx)
	if err != nil {
		return nil
	}
	middle := began.Add(time.Since(began) / 2)
	at, mark := wall.In(zone)
	if mark == gatepost.MarkInvalid {
		return nil
	}
	// Terminals tell whole seconds: on average half a second has passed since.
	return new(at.Add(500 * time.Millisecond).Sub(middle).Milliseconds())
}
