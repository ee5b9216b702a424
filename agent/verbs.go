package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"gatepost"
)

// verb is one command that the agent knows.
type verb struct {
	name   string
	device bool          // goes to a device, not to the agent
	door   bool          // moves a door: must be fresh
	ttl    time.Duration // how old it may be, if the command does not say
	within time.Duration // how long it may take
	can    func(gatepost.Session) bool
	// freshArgs, where set, says which arguments make any other verb as urgent as a door.
	freshArgs func(json.RawMessage) bool
	// prepare reads the arguments and does no I/O; the function it returns does the work.
	prepare func(a *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error)
}

// verbs is the whole list. docs/protocol.md says what each takes and gives.
func verbs() []verb {
	return []verb{
		{"unlock", true, true, doorTTL, 10 * time.Second, is[gatepost.Unlocker], nil, unlock},
		{"info", true, false, otherTTL, 30 * time.Second, anySession, nil, info},
		{"get_time", true, false, otherTTL, 30 * time.Second, is[gatepost.Clock], nil, getTime},
		{"sync_time", true, false, otherTTL, 30 * time.Second, is[gatepost.Clock], tellsTime, syncTime},
		{"pull", true, false, otherTTL, time.Hour, is[gatepost.LogSource], nil, pull},
		{"users_list", true, false, otherTTL, 5 * time.Minute, is[gatepost.UserStore], nil, usersList},
		{"devices", false, false, otherTTL, 10 * time.Second, nil, nil, devices},
		{"ping", false, false, otherTTL, 10 * time.Second, nil, nil, ping},
	}
}

// fresh says whether a command of this verb must prove to be given just now.
func (v *verb) fresh(args json.RawMessage) bool {
	return v.door || v.freshArgs != nil && v.freshArgs(args)
}

func is[T any](s gatepost.Session) bool { _, ok := s.(T); return ok }
func anySession(gatepost.Session) bool  { return true }

func verbNamed(name string) *verb {
	for _, v := range verbs() {
		if v.name == name {
			return &v
		}
	}
	return nil
}

func verbList() string {
	var names []string
	for _, v := range verbs() {
		names = append(names, v.name)
	}
	return strings.Join(names, ", ")
}

// agentVerbs are the commands for the agent itself.
func agentVerbs() []string {
	var names []string
	for _, v := range verbs() {
		if !v.device {
			names = append(names, v.name)
		}
	}
	return names
}

// with runs do on the device's session, as a T.
func with[T any](d *device, do func(context.Context, T) (any, error)) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) {
		s, release, err := d.await(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
		t, ok := s.(T)
		if !ok {
			return nil, &gatepost.Fault{Class: gatepost.Unsupported, Err: fmt.Errorf("%s cannot do this", d.conf.ID)}
		}
		return do(ctx, t)
	}
}

// Limits of unlock's seconds.
const (
	unlockDefault = 5
	unlockMost    = 600 // a terminal may allow less and says so
)

func unlock(_ *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	a := struct {
		Door    *int    `json:"door"`
		Seconds float64 `json:"seconds"`
	}{Seconds: unlockDefault}
	if err := decodeArgs(args, &a); err != nil {
		return nil, err
	}
	if a.Seconds <= 0 || a.Seconds > unlockMost {
		return nil, fmt.Errorf("args: seconds must be above 0 and at most %d, not %g", unlockMost, a.Seconds)
	}
	d.mu.Lock()
	doors := d.info.Doors
	d.mu.Unlock()
	door := 1
	switch {
	case a.Door != nil:
		door = *a.Door
	case doors > 1:
		return nil, coded{"door_missing", fmt.Errorf("%s has %d doors: name one as args.door", d.conf.ID, doors)}
	}
	if door < 1 || doors > 0 && door > doors {
		return nil, fmt.Errorf("args: door must be 1 to %d, not %d", max(doors, 1), door)
	}
	hold := time.Duration(a.Seconds * float64(time.Second))
	return with(d, func(ctx context.Context, u gatepost.Unlocker) (any, error) {
		if err := u.Unlock(ctx, door, hold); err != nil {
			return nil, err
		}
		return map[string]any{"door": door, "seconds": a.Seconds}, nil
	}), nil
}

func noArgs(args json.RawMessage) error { return decodeArgs(args, &struct{}{}) }

func info(_ *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	return with(d, func(ctx context.Context, s gatepost.Session) (any, error) {
		if i, ok := s.(gatepost.Inspector); ok {
			return i.Inspect(ctx)
		}
		return s.Info(), nil
	}), noArgs(args)
}

func getTime(_ *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	return with(d, func(ctx context.Context, c gatepost.Clock) (any, error) {
		skew, err := d.skewOf(ctx, c)
		if err != nil {
			return nil, err
		}
		now := d.a.now()
		return map[string]any{"time": gatepost.WallOf(now.Add(skew).In(d.conf.Zone)), "timezone": d.conf.ZoneName,
			"skew_ms": skew.Milliseconds(), "clock": d.a.clock.word()}, nil
	}), noArgs(args)
}

// tellsTime says whether a sync_time names the time itself, which is true only when it is given.
func tellsTime(args json.RawMessage) bool {
	var a struct {
		Time string `json:"time"`
	}
	return json.Unmarshal(args, &a) == nil && a.Time != ""
}

func syncTime(_ *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	var a struct {
		Time string `json:"time"`
	}
	if err := decodeArgs(args, &a); err != nil {
		return nil, err
	}
	var at time.Time
	if a.Time != "" {
		wall, err := gatepost.ParseWall(a.Time)
		if err != nil {
			return nil, fmt.Errorf("args: time %w", err)
		}
		at, _ = wall.In(d.conf.Zone)
	} else if d.a.clock.word() == gatepost.ClockUnsynced {
		return nil, coded{"clock_unsynced", fmt.Errorf(`this board's clock is not synchronised; give the local time as args.time ("2006-01-02T15:04:05")`)}
	}
	return with(d, func(ctx context.Context, c gatepost.Clock) (any, error) {
		// No unread record may be left with a time of the old clock.
		if _, err := d.order(ctx, false); err != nil && gatepost.ClassOf(err) != gatepost.Unsupported {
			return nil, notSent{fmt.Errorf("the log must be read before the clock is set: %w", err)}
		}
		return d.setClock(ctx, c, at)
	}), nil
}

func pull(_ *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	a := struct {
		Full bool `json:"full"`
	}{Full: true}
	if err := decodeArgs(args, &a); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (any, error) {
		_, release, err := d.await(ctx)
		if err != nil {
			return nil, err
		}
		release() // who reads the log is the session's owner
		got, err := d.order(ctx, a.Full)
		if err != nil {
			return nil, err
		}
		return map[string]int{"read": got.read.Emitted, "new": got.added}, nil
	}, nil
}

// order has the owner of the session read the log and waits for the outcome.
func (d *device) order(ctx context.Context, full bool) (pullAnswer, error) {
	o := pullOrder{full, make(chan pullAnswer, 1)}
	select {
	case d.pull <- o:
	case <-d.done:
		return pullAnswer{}, d.gone()
	case <-ctx.Done():
		return pullAnswer{}, notSent{fmt.Errorf("%s is busy: %w", d.conf.ID, context.Cause(ctx))}
	}
	select {
	case got := <-o.reply:
		return got, got.err
	case <-d.done:
		return pullAnswer{}, d.gone()
	case <-ctx.Done():
		return pullAnswer{}, context.Cause(ctx)
	}
}

// usersMost is how many users one answer holds.
const usersMost = 500

func usersList(_ *Agent, d *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	a := struct {
		Offset int `json:"offset"`
		Limit  int `json:"limit"`
	}{Limit: usersMost}
	if err := decodeArgs(args, &a); err != nil {
		return nil, err
	}
	if a.Offset < 0 || a.Limit < 1 || a.Limit > usersMost {
		return nil, fmt.Errorf("args: offset must be 0 or more and limit 1 to %d", usersMost)
	}
	return with(d, func(ctx context.Context, s gatepost.UserStore) (any, error) {
		users, err := s.Users(ctx)
		if err != nil {
			return nil, err
		}
		from := min(a.Offset, len(users))
		page := users[from:min(from+a.Limit, len(users))]
		return map[string]any{"count": len(users), "offset": from, "users": page}, nil
	}), nil
}

func devices(a *Agent, _ *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	return func(context.Context) (any, error) { return a.Devices(), nil }, noArgs(args)
}

func ping(a *Agent, _ *device, args json.RawMessage) (func(context.Context) (any, error), error) {
	return func(context.Context) (any, error) {
		return map[string]any{"time": a.now().UTC(), "clock": a.clock.word(), "version": a.opts.Version}, nil
	}, noArgs(args)
}
