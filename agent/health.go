package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"gatepost"

	"golang.org/x/sys/unix"
)

// hello is what is said at each connect; its challenge counts from now.
func (a *Agent) hello() gatepost.Hello {
	return gatepost.Hello{Version: a.opts.Version, Session: rand.Text()[:12], Challenge: a.challenge.publish(time.Now()), Birth: a.birth()}
}

func (a *Agent) birth() gatepost.Birth {
	b := gatepost.Birth{Agent: a.opts.ID, Version: a.opts.Version, Board: boardOf(), Started: a.now().Add(-a.uptime()).UTC().Round(time.Second), Zone: a.opts.Zone,
		Devices: []gatepost.BirthDevice{}, Verbs: agentVerbs(), Verify: "challenge"}
	if a.clock.word() != gatepost.ClockUnsynced {
		b.Verify = "issued_at"
	}
	for _, d := range a.deviceList() {
		b.Devices = append(b.Devices, d.birth())
	}
	return b
}

func (d *device) birth() gatepost.BirthDevice {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := gatepost.BirthDevice{ID: d.conf.ID, Driver: d.conf.Driver, Model: d.info.Model, Serial: d.info.Serial,
		Firmware: d.info.Firmware, Doors: d.info.Doors, Zone: d.conf.ZoneName, State: d.state, Verbs: []string{}, TTL: map[string]float64{}}
	for _, v := range verbs() {
		if v.device && (d.session == nil || v.can(d.session)) {
			b.Verbs = append(b.Verbs, v.name)
			b.TTL[v.name] = v.ttl.Seconds()
		}
	}
	return b
}

// changed notes that the birth document is not what it was; announce sends it.
func (a *Agent) changed() {
	select {
	case a.news <- struct{}{}:
	default: // noted already
	}
}

// announce tells every link the birth document when it has changed, until ctx ends. Changes that come together, as when
// all terminals come online, are told at once. A link that cannot take it is about to be lost, and hears it at the next connect.
func (a *Agent) announce(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.news:
		}
		pause := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		b := a.birth()
		for _, l := range a.linked() {
			actx, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := l.Announce(actx, b); err != nil {
				a.log.Debug("birth document not sent", "err", err)
			}
			cancel()
		}
	}
}

// beat sends heartbeats until ctx ends, each with a new challenge, and tidies once an hour.
func (a *Agent) beat(ctx context.Context) {
	t := time.NewTicker(a.opts.Beat)
	defer t.Stop()
	tidied := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		a.challenge.rotate(time.Now())
		a.report(ctx)
		var wg sync.WaitGroup // no uplink waits for another
		for _, u := range a.uplinkList() {
			if l := u.current(); l != nil {
				wg.Go(func() {
					bctx, cancel := context.WithTimeout(ctx, a.opts.Beat/2)
					defer cancel()
					if err := l.Beat(bctx, a.heartbeat(u.conf.ID)); err != nil {
						u.log.Debug("heartbeat not sent", "err", err)
					}
				})
			}
		}
		wg.Wait()
		if time.Since(tidied) >= time.Hour {
			tidied = time.Now()
			a.forgetOldResults(ctx)
			a.rememberTime(ctx)
		}
	}
}

// rememberTime keeps the time, where it can be trusted, as one below which no later start will go.
func (a *Agent) rememberTime(ctx context.Context) {
	if a.clock.word() == gatepost.ClockUnsynced {
		return
	}
	if err := a.book.SetLastTime(ctx, a.now()); err != nil {
		a.log.Warn("time not remembered", "err", err)
	}
}

// forgetOldResults drops what refuses a second final result of commands that the ledger has forgotten too.
func (a *Agent) forgetOldResults(ctx context.Context) {
	oldest := gatepost.WallOf(a.now().UTC().Add(-ledgerLife)).Minute() / gatepost.MinutesPerDay
	if _, err := a.store.Prune(ctx, commandSource, func(day int64) bool { return day >= oldest }); err != nil {
		a.log.Warn("old results not forgotten", "err", err)
	}
}

func (a *Agent) heartbeat(uplink string) gatepost.Heartbeat {
	h := gatepost.Heartbeat{Time: a.now().UTC(), Clock: a.clock.word(), Uptime: a.uptime().Seconds(),
		Challenge: a.challenge.publish(time.Now()), Backlog: a.store.Stats().Uplinks[uplink],
		Devices: map[string]int{"online": 0, "total": 0}, Board: boardHealth(a.opts.DataDir)}
	for _, d := range a.deviceList() {
		d.mu.Lock()
		h.Devices["total"]++
		if d.state == gatepost.StateOnline {
			h.Devices["online"]++
		}
		d.mu.Unlock()
	}
	return h
}

func boardOf() gatepost.Board {
	b := gatepost.Board{OS: runtime.GOOS, Arch: runtime.GOARCH}
	b.Host, _ = os.Hostname()
	model, err := os.ReadFile("/proc/device-tree/model")
	if err != nil {
		model, _ = os.ReadFile("/sys/class/dmi/id/product_name")
	}
	b.Model = strings.TrimRight(strings.TrimSpace(string(model)), "\x00")
	return b
}

// boardHealth reads what the kernel tells; what it does not tell stays nil.
func boardHealth(dir string) gatepost.BoardHealth {
	var h gatepost.BoardHealth
	if b, err := os.ReadFile("/sys/class/thermal/thermal_zone0/temp"); err == nil {
		if milli, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64); err == nil {
			h.TemperatureC = new(milli / 1000)
		}
	}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil {
		h.DiskFreeMiB = new(float64(fs.Bavail) * float64(fs.Bsize) / (1 << 20))
	}
	h.MemFreeMiB = kibField("/proc/meminfo", "MemAvailable:")
	h.RSSMiB = kibField("/proc/self/status", "VmRSS:")
	return h
}

// kibField reads a "Name: 123 kB" line of a proc file, in MiB.
func kibField(path, name string) *float64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) >= 2 && f[0] == name {
			if kib, err := strconv.ParseFloat(f[1], 64); err == nil {
				return new(kib / 1024)
			}
		}
	}
	return nil
}
