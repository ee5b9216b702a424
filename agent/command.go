package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"gatepost"
	"gatepost/agent/book"
	"gatepost/buffer"
)

const (
	doorTTL     = 10 * time.Second // how old a command that moves a door may be, if it does not say
	doorTTLMost = time.Minute      // and if it does
	otherTTL    = time.Hour        // any other command
	acceptAfter = time.Second      // a command still running then is answered "accepted" first
	ledgerLife  = 31 * 24 * time.Hour
)

// errStopping is why a command is left with whoever sent it.
var errStopping = errors.New("the agent is stopping, or still starting")

// take answers one message that came as a command. It returns when the answer is on disk.
func (a *Agent) take(ctx context.Context, m gatepost.Delivery) {
	if _, err := a.handle(ctx, m); err != nil && !errors.Is(err, errStopping) {
		a.log.Error("command not taken: it cannot be written down", "command", m.Command.ID, "err", err)
	}
}

// Do judges and runs one command and returns its final result, which is then on disk too. The error says that nothing was
// done because nothing could be written down.
func (a *Agent) Do(ctx context.Context, c gatepost.Command) (gatepost.Result, error) {
	if c.ID == "" && c.Local {
		c.ID = "local-" + rand.Text()[:16]
	}
	return a.handle(ctx, gatepost.Delivery{Command: c})
}

func (a *Agent) handle(ctx context.Context, m gatepost.Delivery) (gatepost.Result, error) {
	if !a.enter() {
		return gatepost.Result{}, errStopping
	}
	defer a.leave()
	recorded := m.Done
	if recorded == nil {
		recorded = func() {}
	}
	c, now := clip(m.Command), a.now()
	job, refused := a.judge(c, m.Bad, now)
	if refused == nil {
		select {
		case job.slots <- struct{}{}:
			defer func() { <-job.slots }()
		default:
			refused = new(refusal(c, gatepost.StatusUnavailable, "busy", fmt.Sprintf("%d such commands are under way", cap(job.slots))))
		}
	}
	if refused != nil {
		return a.refuse(ctx, c, *refused, now, recorded)
	}

	known, err := a.book.Begin(ctx, c, now)
	if err != nil {
		return gatepost.Result{}, err
	}
	if known != nil {
		return a.again(ctx, known, recorded)
	}
	recorded()
	// From here on the command has begun: whatever happens, exactly one final result follows. It does not end because the
	// link it came by did.
	ctx = context.WithoutCancel(ctx)
	r := a.perform(ctx, job, c)
	a.finish(ctx, r, now)
	attrs := []any{"command", c.ID, "verb", c.Verb, "device", string(c.Device), "took", a.now().Sub(now).Round(time.Microsecond)}
	if r.Error != nil {
		attrs = append(attrs, "err", r.Error.Message)
	}
	a.log.Info("command "+string(r.Status), attrs...)
	return r, nil
}

// finish writes the one final result of a begun command: to the ledger first, then, while that is synced, to the records.
// What fails here is made good by settle or report.
func (a *Agent) finish(ctx context.Context, r gatepost.Result, began time.Time) {
	if err := a.book.Finish(ctx, r, a.now()); err != nil {
		// Not told either: the next start will call it unknown, and two final results would be one too many.
		a.log.Error("ledger not written; the command will be unknown", "command", r.ID, "err", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := a.book.Sync(); err != nil {
			a.log.Error("ledger not synced", "command", r.ID, "err", err)
		}
	})
	if err := a.conclude(ctx, r, began); err != nil {
		a.log.Error("result not stored yet", "command", r.ID, "err", err)
	}
}

// refuse answers a command for which nothing was sent. Floods of such commands wait their turn, so that they fill no disk.
func (a *Agent) refuse(ctx context.Context, c gatepost.Command, r gatepost.Result, now time.Time, recorded func()) (gatepost.Result, error) {
	if !c.Local {
		if err := a.refusals.wait(ctx, a.halting); err != nil {
			return r, err
		}
	}
	if c.ID == "" { // nothing to know it by
		if err := a.answer(ctx, r); err != nil {
			return r, err
		}
		recorded()
		return r, nil
	}
	known, err := a.book.FinishNew(ctx, c, r, now)
	if err != nil {
		return r, err
	}
	if known != nil {
		return a.again(ctx, known, recorded)
	}
	if err := a.conclude(ctx, r, now); err != nil {
		return r, err
	}
	recorded()
	a.log.Info("command refused", "command", c.ID, "verb", c.Verb, "device", string(c.Device), "err", r.Error.Message)
	return r, nil
}

// maxWord bounds the words of a command that are kept: longer ones fit nothing that exists.
const maxWord = 64

// clip cuts words that are too long to be right, so that nothing kept grows with what strangers send.
func clip(c gatepost.Command) gatepost.Command {
	cut := func(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxWord+1)], "") }
	c.Verb, c.Challenge, c.Device = cut(c.Verb), cut(c.Challenge), gatepost.DeviceID(cut(string(c.Device)))
	return c
}

// pace lets a burst pass and then one each refuseEvery; who comes beyond waits.
type pace struct {
	mu   sync.Mutex
	next time.Time
}

const (
	refuseEvery = 50 * time.Millisecond
	refuseBurst = 200
)

func (p *pace) wait(ctx context.Context, halting <-chan struct{}) error {
	p.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-refuseBurst * refuseEvery); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(refuseEvery)
	turn := time.NewTimer(p.next.Sub(now))
	p.mu.Unlock()
	defer turn.Stop()
	select {
	case <-turn.C:
		return nil
	case <-halting:
		return errStopping
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// perform runs a job and answers "accepted" if it takes long.
func (a *Agent) perform(ctx context.Context, j job, c gatepost.Command) gatepost.Result {
	ctx, cancel := context.WithDeadline(ctx, j.deadline)
	defer cancel()
	var mu sync.Mutex // "accepted" never follows the final result
	ended := false
	accepted := time.AfterFunc(acceptAfter, func() {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return
		}
		if err := a.answer(ctx, result(c, gatepost.StatusAccepted)); err != nil {
			a.log.Debug("not answered accepted", "command", c.ID, "err", err)
		}
	})
	defer accepted.Stop()
	data, err := j.do(ctx)
	mu.Lock()
	defer mu.Unlock()
	ended = true
	return resultOf(c, data, err)
}

// again answers a command whose id is known: it is never run twice. One that is still under way gets no answer but the one
// it will have.
func (a *Agent) again(ctx context.Context, known *book.Entry, recorded func()) (gatepost.Result, error) {
	if known.State != book.Final {
		recorded()
		return result(known.Command, gatepost.StatusAccepted), nil
	}
	if err := a.answer(ctx, known.Result); err != nil {
		return known.Result, err
	}
	recorded()
	return known.Result, nil
}

// conclude stores the final result of a command. Its record is named by the command, so that a second one is refused as a
// double, whatever dies in between.
func (a *Agent) conclude(ctx context.Context, r gatepost.Result, began time.Time) error {
	e, err := a.resultEntry(r)
	if err != nil {
		return err
	}
	e.Source = commandSource
	e.ID, e.Minute = resultName(r.ID, began)
	if _, err := a.store.Put(ctx, e); err != nil {
		return err
	}
	return a.book.Reported(ctx, r.ID)
}

// resultName is the name of the record of a command's final result, and the minute under which a second one is refused.
func resultName(command string, began time.Time) (gatepost.ID, int64) {
	return gatepost.NewID(commandSource, gatepost.KindResult, command), gatepost.WallOf(began.UTC()).Minute()
}

// answer stores a result that is not a command's one final: accepted, a repeated answer, or one to a command without id.
func (a *Agent) answer(ctx context.Context, r gatepost.Result) error {
	e, err := a.resultEntry(r)
	if err != nil {
		return err
	}
	_, err = a.store.Put(ctx, e)
	return err
}

func (a *Agent) resultEntry(r gatepost.Result) (buffer.Entry, error) {
	s := stamper{device: r.Device, clock: a.clock}
	if a.device(r.Device) == nil { // a device that nobody knows: the answer is the agent's own
		s.device = ""
	}
	return s.entry(gatepost.Record{Data: r}, a.now())
}

// settle gives every command that an earlier run left open its one final result: the one among the records, where the power
// went before the ledger was synced, else unknown. Nothing is run again.
func (a *Agent) settle(ctx context.Context) error {
	open, err := a.book.Unfinished(ctx)
	if err != nil {
		return err
	}
	for _, e := range open {
		if e.State == book.Final {
			continue
		}
		r, found, err := a.onRecord(ctx, e)
		if err != nil {
			return err
		}
		if !found {
			r = refusal(e.Command, gatepost.StatusUnknown, "died", "the agent stopped while this was under way; it may or may not have happened")
		}
		if err := a.book.Finish(ctx, r, a.now()); err != nil {
			return err
		}
		a.log.Warn("command left open by an earlier run is "+string(r.Status), "command", e.Command.ID, "verb", e.Command.Verb)
	}
	return nil
}

// onRecord looks for the final result of e among the newest records, where it is if the power went just after it was put.
// Where none was ever put, it reads nothing.
func (a *Agent) onRecord(ctx context.Context, e book.Entry) (r gatepost.Result, found bool, err error) {
	id, minute := resultName(e.Command.ID, e.Received)
	if put, err := a.store.Has(ctx, commandSource, minute, id); err != nil || !put {
		return r, false, err
	}
	const page, pages = 64, 100 // each record has at most maxData
	head := a.store.Head()
	for upto := head; upto > max(0, head-pages*page); upto -= page {
		rs, err := a.store.Read(ctx, upto-page, upto, page, page*2*maxData)
		if err != nil {
			return r, false, err
		}
		for _, s := range rs {
			if s.ID == id {
				found = json.Unmarshal(s.Data, &r) == nil && r.Status.Final()
				return r, found, nil
			}
		}
	}
	return r, false, nil
}

// report stores the final results that are in the ledger but not among the records: those that settle gave, and those that
// met a full buffer or a death on their way.
func (a *Agent) report(ctx context.Context) {
	left, err := a.book.Unfinished(ctx)
	if err != nil {
		a.log.Error("ledger not read", "err", err)
		return
	}
	for _, e := range left {
		if e.State != book.Final {
			continue
		}
		if err := a.conclude(ctx, e.Result, e.Received); err != nil {
			a.log.Debug("result not stored yet", "command", e.Command.ID, "err", err)
			return
		}
	}
}

// job is a command that was judged and may run.
type job struct {
	slots    chan struct{} // of commands of its sort; full: busy
	deadline time.Time     // for a door: when the command stops being fresh; it must not go out later
	do       func(context.Context) (any, error)
}

// judge decides whether a command may run, and says why not.
func (a *Agent) judge(c gatepost.Command, bad error, now time.Time) (job, *gatepost.Result) {
	no := func(s gatepost.ResultStatus, code, format string, args ...any) (job, *gatepost.Result) {
		return job{}, new(refusal(c, s, code, fmt.Sprintf(format, args...)))
	}
	v := verbNamed(c.Verb)
	switch {
	case bad != nil:
		return no(gatepost.StatusRejected, codeOf(bad, "bad_json"), "%s", bad)
	case c.ID == "":
		return no(gatepost.StatusRejected, "no_id", `a command needs an "id" of its own`)
	case c.Retained:
		return no(gatepost.StatusRejected, "retained", "the broker had kept this command (retained); it is never run")
	case v == nil:
		return no(gatepost.StatusRejected, "unknown_command", "there is no command %q; known are %s", c.Verb, verbList())
	}
	left, slots := v.within, a.slots
	f, ok := a.freshness(c, v, now)
	switch {
	case !ok:
		return no(f.status, f.code, "%s", f.message)
	case v.fresh(c.Args):
		left = min(left, f.left)
	}
	var d *device
	switch {
	case !v.device && c.Device != "":
		return no(gatepost.StatusRejected, "unknown_command", "%q is a command for the agent, not for a device", c.Verb)
	case v.device && c.Device == "":
		return no(gatepost.StatusRejected, "unknown_device", "%q needs a device", c.Verb)
	case v.device:
		if d = a.device(c.Device); d == nil {
			return no(gatepost.StatusRejected, "unknown_device", "there is no device %q here", c.Device)
		}
	}
	run, err := v.prepare(a, d, c.Args)
	if err != nil {
		return no(gatepost.StatusRejected, codeOf(err, "bad_args"), "%s", err)
	}
	if d != nil {
		slots = d.slots
		if v.door {
			slots = d.doorSlots
		}
		s, err := d.ready()
		if err != nil {
			return no(gatepost.StatusUnavailable, "unavailable", "%s", err)
		}
		if s != nil && !v.can(s) {
			return no(gatepost.StatusUnsupported, "unsupported", "%s cannot %s", c.Device, c.Verb)
		}
	}
	return job{slots: slots, deadline: time.Now().Add(left), do: run}, nil
}

// verdict is what became of a command's freshness: how long it stays fresh, or why it is not.
type verdict struct {
	left          time.Duration
	status        gatepost.ResultStatus
	code, message string
}

// freshness applies the rule of design: a verb that moves a door needs proof that it was given just now. Either its time
// of issue, by a clock that this board can check, or a challenge that the agent published within the last minute.
func (a *Agent) freshness(c gatepost.Command, v *verb, now time.Time) (verdict, bool) {
	ttl := v.ttl
	fresh := v.fresh(c.Args)
	if fresh {
		ttl = doorTTL
	}
	if c.TTL > 0 {
		ttl = c.TTL
	}
	if fresh {
		ttl = min(ttl, doorTTLMost)
	}
	if c.Local {
		return verdict{left: ttl}, true
	}
	clockGood := a.clock.word() != gatepost.ClockUnsynced
	age := now.Sub(c.Issued)
	if !fresh {
		if clockGood && !c.Issued.IsZero() && age > ttl {
			return verdict{status: gatepost.StatusExpired, code: "expired", message: fmt.Sprintf("issued %s ago; it was good for %s", age.Round(time.Second), ttl)}, false
		}
		return verdict{left: ttl}, true
	}
	if c.Challenge != "" && a.challenge.fresh(c.Challenge, time.Now()) {
		return verdict{left: ttl}, true
	}
	reject := func(code, message string) (verdict, bool) {
		return verdict{status: gatepost.StatusRejected, code: code, message: message}, false
	}
	switch {
	case c.Issued.IsZero() && c.Challenge == "":
		return reject("no_freshness", `a command that moves a door or tells the time needs "issued_at" or "challenge"`)
	case c.Challenge != "" && (c.Issued.IsZero() || !clockGood):
		return reject("wrong_challenge", "this challenge was not published within the last minute; take the newest from state or heartbeat")
	case !clockGood:
		return reject("no_freshness", `this board's clock is not synchronised, so "issued_at" proves nothing: send the "challenge" of the newest heartbeat`)
	case age > ttl:
		return verdict{status: gatepost.StatusExpired, code: "stale", message: fmt.Sprintf("issued %s ago; it was good for %s", age.Round(time.Millisecond), ttl)}, false
	case age < -ttl:
		return reject("stale", fmt.Sprintf("issued %s in the future: compare the clocks of sender and board", (-age).Round(time.Millisecond)))
	}
	return verdict{left: min(ttl, ttl-age)}, true
}

// ready is the device's session, or why there is none. It is nil where one is about to come: at the first try since the
// start, and between short connections.
func (d *device) ready() (gatepost.Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil || d.state == gatepost.StateOnline || d.state == gatepost.StateConnecting {
		return d.session, nil
	}
	if d.reason != "" {
		return nil, fmt.Errorf("%s is in state %s: %s", d.conf.ID, d.state, d.reason)
	}
	return nil, fmt.Errorf("%s is in state %s", d.conf.ID, d.state)
}

// await is the open session, or the one that comes before ctx ends; a pause between short connections ends now. The caller
// calls release when it has done with it.
func (d *device) await(ctx context.Context) (s gatepost.Session, release func(), err error) {
	for {
		if ctx.Err() != nil {
			return nil, nil, notSent{fmt.Errorf("%s: %w", d.conf.ID, context.Cause(ctx))}
		}
		d.mu.Lock()
		s, online, reason := d.session, d.online, d.reason
		if s != nil {
			d.using++
			d.mu.Unlock()
			return s, d.release, nil
		}
		d.mu.Unlock()
		select {
		case d.wake <- struct{}{}:
		default:
		}
		select {
		case <-online:
		case <-d.done:
			return nil, nil, d.gone()
		case <-ctx.Done():
			if reason == "" {
				reason = "it did not answer"
			}
			return nil, nil, notSent{fmt.Errorf("%s did not come online (%s): %w", d.conf.ID, reason, context.Cause(ctx))}
		}
	}
}

func (d *device) release() {
	d.mu.Lock()
	d.using--
	d.mu.Unlock()
}

func result(c gatepost.Command, s gatepost.ResultStatus) gatepost.Result {
	return gatepost.Result{ID: c.ID, Device: c.Device, Verb: c.Verb, Status: s}
}

func refusal(c gatepost.Command, s gatepost.ResultStatus, code, message string) gatepost.Result {
	const most = 500 // bytes; a message may quote what a stranger sent
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + " …"
	}
	r := result(c, s)
	r.Error = &gatepost.ResultError{Code: code, Message: message}
	return r
}

// resultOf says in a result what came of running c.
func resultOf(c gatepost.Command, data any, err error) gatepost.Result {
	switch {
	case err == nil:
		r := result(c, gatepost.StatusDone)
		if data == nil {
			return r
		}
		b, err := json.Marshal(data)
		if err != nil {
			return refusal(c, gatepost.StatusFailed, "failed", err.Error())
		}
		if len(b) > maxData {
			return refusal(c, gatepost.StatusFailed, "too_large", fmt.Sprintf("the answer has %d bytes, more than the %d that pass", len(b), maxData))
		}
		r.Data = b
		return r
	case errors.Is(err, gatepost.ErrOutcomeUnknown):
		return refusal(c, gatepost.StatusUnknown, "no_answer", err.Error())
	case errors.Is(err, gatepost.ErrRefused):
		return refusal(c, gatepost.StatusFailed, "refused", err.Error())
	case gatepost.ClassOf(err) == gatepost.Unsupported:
		return refusal(c, gatepost.StatusUnsupported, "unsupported", err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		if _, unsent := errors.AsType[notSent](err); unsent || verbNamed(c.Verb).door {
			return refusal(c, gatepost.StatusExpired, "expired", "its time ran out before it could go to the terminal: "+err.Error())
		}
		return refusal(c, gatepost.StatusUnknown, "no_answer", err.Error())
	}
	return refusal(c, gatepost.StatusFailed, codeOf(err, "failed"), err.Error())
}

// maxData bounds a result's data, so that it passes every uplink.
const maxData = 100 << 10

// notSent marks an error after which nothing has gone to the terminal.
type notSent struct{ error }

func (n notSent) Unwrap() error { return n.error }

// coded is an error with a code for programs.
type coded struct {
	code string
	error
}

func (c coded) Unwrap() error { return c.error }

func codeOf(err error, otherwise string) string {
	if c, ok := errors.AsType[coded](err); ok {
		return c.code
	}
	return otherwise
}

// decodeArgs fills into, which holds the defaults, from a command's args. Unknown names are mistakes: a misspelt
// "seconds" must not open a door for the default time.
func decodeArgs(args json.RawMessage, into any) error {
	if len(args) == 0 || bytes.Equal(args, []byte("null")) {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(args))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("args: %w", plainJSON(err))
	}
	return nil
}

// plainJSON words encoding/json's errors without Go's types.
func plainJSON(err error) error {
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if t.Field == "" {
			return fmt.Errorf("must be an object, not a %s", t.Value)
		}
		return fmt.Errorf("%s must not be a %s", t.Field, t.Value)
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}
