package agent

import (
	"context"
	"fmt"
	"time"

	"gatepost"
)

const (
	skewJump  = 5 * time.Second  // a skew that moves more than this between two measurements is a clock that was moved
	zoneMost  = 26 * time.Hour   // no two zones are further apart
	zoneSlack = 90 * time.Second // how near to whole quarter-hours a skew must be to look like a wrong zone
)

// measureSkew compares the terminal's clock with the board's at the midpoint of a round trip. A terminal that has no clock
// to read, or fails to tell it, keeps the last figure; the failure shows at the next read of its log.
func (d *device) measureSkew(ctx context.Context, s gatepost.Session) {
	c, ok := s.(gatepost.Clock)
	if !ok {
		return
	}
	skew, err := d.skewOf(ctx, c)
	if err != nil {
		d.log.Debug("clock not read", "err", err)
		return
	}
	d.mu.Lock()
	was, known := d.skew, d.skewSet
	d.skew, d.skewSet = skew, true
	d.mu.Unlock()
	if known && (skew-was).Abs() > skewJump {
		d.log.Warn("terminal clock jumped", "was", was, "is", skew)
		d.event(ctx, gatepost.Event{Name: "clock_jumped",
			Message: fmt.Sprintf("the terminal's clock moved by %s", (skew - was).Round(time.Second)),
			Detail:  map[string]int64{"was_ms": was.Milliseconds(), "is_ms": skew.Milliseconds()}})
	}
	if (!known || (skew-was).Abs() > skewJump) && looksLikeZone(skew) {
		d.log.Warn("terminal clock is whole quarter-hours off: is its time zone right?", "skew", skew)
		d.event(ctx, gatepost.Event{Name: "zone_suspect",
			Message: fmt.Sprintf("the terminal's clock is %s off, which looks like a wrong time zone; it is not set by itself", skew.Round(time.Second)),
			Detail:  map[string]any{"skew_ms": skew.Milliseconds(), "timezone": d.conf.ZoneName}})
	}
}

func (d *device) skewOf(ctx context.Context, c gatepost.Clock) (time.Duration, error) {
	began := d.a.now()
	wall, err := c.Time(ctx)
	if err != nil {
		return 0, err
	}
	middle := began.Add(d.a.now().Sub(began) / 2)
	at, mark := wall.In(d.conf.Zone)
	if mark == gatepost.MarkInvalid {
		return 0, fmt.Errorf("the terminal's clock says %q", wall)
	}
	// Terminals tell whole seconds: on average half a second has passed since.
	return at.Add(500 * time.Millisecond).Sub(middle), nil
}

// looksLikeZone says whether a skew is near a whole number of quarter-hours, at least one.
func looksLikeZone(skew time.Duration) bool {
	const quarter = 15 * time.Minute
	off := skew.Abs()
	return off >= quarter-zoneSlack && off <= zoneMost && (off-off.Round(quarter)).Abs() <= zoneSlack
}

// governClock sets the terminal's clock if the config's threshold is passed. It is called only after the whole log was
// read, so that no unread record has a time of the old clock; never while the board's own clock is in doubt.
func (d *device) governClock(ctx context.Context, s gatepost.Session) {
	c, ok := s.(gatepost.Clock)
	d.mu.Lock()
	skew, known := d.skew, d.skewSet
	d.mu.Unlock()
	if !ok || !known || d.conf.SyncClock == 0 || skew.Abs() <= d.conf.SyncClock || looksLikeZone(skew) ||
		d.a.clock.word() == gatepost.ClockUnsynced {
		return
	}
	if _, err := d.setClock(ctx, c, time.Time{}); err != nil {
		d.log.Warn("clock not set", "err", err)
	}
}

// setClock writes the terminal's clock (to the board's time where at is zero), measures what came of it, and says so.
func (d *device) setClock(ctx context.Context, c gatepost.Clock, at time.Time) (clockSet, error) {
	before, err := d.skewOf(ctx, c)
	if err != nil {
		return clockSet{}, err
	}
	to := at
	if to.IsZero() {
		to = d.a.now()
	}
	wall := gatepost.WallOf(to.Add(500 * time.Millisecond).In(d.conf.Zone))
	if err := c.SetTime(ctx, wall); err != nil {
		return clockSet{}, err
	}
	after, err := d.skewOf(ctx, c)
	if err != nil {
		return clockSet{}, err
	}
	d.mu.Lock()
	d.skew, d.skewSet = after, true
	d.mu.Unlock()
	set := clockSet{Set: string(wall), Before: before.Milliseconds(), After: after.Milliseconds()}
	d.log.Info("terminal clock set", "was", before, "is", after)
	d.event(ctx, gatepost.Event{Name: "clock_set", Detail: set})
	return set, nil
}

// clockSet is what came of writing a terminal's clock.
type clockSet struct {
	Set    string `json:"set"`
	Before int64  `json:"skew_before_ms"`
	After  int64  `json:"skew_after_ms"`
}
