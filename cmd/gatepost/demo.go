package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gatepost"
	"gatepost/agent"
	"gatepost/drivers/zk/zksim"
)

// demo shows all of gatepost in one process: three simulated terminals on real sockets, an MQTT broker, and between them
// the very agent that "gatepost run" runs. A small backend subscribes and keeps count. stage.go builds the scenery.
func demo(ctx context.Context, f *flags) error {
	once := f.Bool("once", false, "end after the tour, and fail unless every punch arrived once and every door opened as told")
	if _, err := f.take(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gatepost-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	ctx, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	s, err := build(ctx, &wg, dir)
	defer func() {
		stop(nil)
		wg.Wait()
		s.close()
	}()
	if err != nil {
		return err
	}

	logFile, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(logFile, nil))
	site, err := openSite(ctx, s.configPath(), log, agent.Options{ReconnectWindow: time.Second})
	if err != nil {
		return err
	}
	wg.Go(func() {
		defer logFile.Close()
		err := site.run(ctx)
		if err == nil {
			err = errors.New("the agent stopped")
		}
		stop(err)
	})

	t := &tour{stage: s, agent: site.agent}
	if isTerminal(os.Stdout) {
		t.colour = os.Getenv("NO_COLOR") == ""
		if !*once {
			t.pause = 1500 * time.Millisecond
		}
	}
	err = t.play(ctx)
	if err == nil {
		err = t.balance()
	}
	switch {
	case interrupted(ctx):
		return nil
	case err != nil:
		return fmt.Errorf("demo: %w", err)
	case *once:
		return nil
	}
	t.invite()
	<-ctx.Done()
	if interrupted(ctx) {
		return nil
	}
	return context.Cause(ctx)
}

// interrupted says whether ctx ended because a person wanted it to.
func interrupted(ctx context.Context) bool { return errors.Is(context.Cause(ctx), context.Canceled) }

// tour tells the story.
type tour struct {
	*stage
	agent  *agent.Agent
	colour bool
	pause  time.Duration // between scenes, for people to read
}

func (t *tour) play(ctx context.Context) error {
	entrance, canteen, workshop := t.terminals[0], t.terminals[1], t.terminals[2]

	t.scene(ctx, "The agent starts")
	t.say("%s keeps %d punches from before; the agent reads the log and sends them", entrance.id, entrance.State().Records)
	if err := t.allArrive(ctx); err != nil {
		return err
	}
	t.say("the backend has %d punches", t.backend.count())

	t.scene(ctx, "Someone punches")
	began := time.Now()
	if err := entrance.Punch(zksim.Punch{User: "7"}); err != nil {
		return err
	}
	t.say("user 7 puts a finger on %s", entrance.id)
	if err := t.allArrive(ctx); err != nil {
		return err
	}
	t.say("the backend has it, %d ms later", time.Since(began).Milliseconds())

	t.scene(ctx, "The link is cut")
	t.relay.cut()
	if err := t.until(ctx, "the agent to notice", func() bool { return t.uplink().State != "online" }); err != nil {
		return err
	}
	t.say("the agent says: %s", t.uplink().Reason)
	const perTerminal = 10
	for i := range perTerminal {
		for _, at := range t.terminals {
			if err := at.Punch(zksim.Punch{User: fmt.Sprint(i + 1), Direction: gatepost.DirectionOut}); err != nil {
				return err
			}
		}
	}
	t.say("shift ends: %d people punch out at %s, %s and %s", 3*perTerminal, entrance.id, canteen.id, workshop.id)
	if err := t.until(ctx, "the punches to be on disk", func() bool { return t.uplink().Backlog.Records >= 3*perTerminal }); err != nil {
		return err
	}
	t.say("%d records wait on disk; the terminals were told that we have them only after that", t.uplink().Backlog.Records)

	t.scene(ctx, "The link returns")
	t.relay.restore()
	if err := t.allArrive(ctx); err != nil {
		return err
	}
	t.say("every punch arrived, each once: the backend has %d", t.backend.count())

	t.scene(ctx, "An unlock goes down")
	began = time.Now()
	r, err := t.unlock(ctx, "visitor-1", entrance, began)
	if err != nil {
		return err
	}
	t.say("the backend asks for %s to open; %d ms later the answer is %q", entrance.id, time.Since(began).Milliseconds(), r.Status)
	for _, o := range entrance.State().Doors {
		t.say("the simulated door opened for %g s", o.Seconds)
	}
	if r, err = t.unlock(ctx, "visitor-1", entrance, began); err != nil {
		return err
	}
	t.say("the same command once more is answered %q again and opens nothing: openings so far: %d", r.Status, len(entrance.State().Doors))

	t.scene(ctx, "A stale unlock is refused")
	if r, err = t.unlock(ctx, "visitor-2", entrance, time.Now().Add(-time.Hour)); err != nil {
		return err
	}
	if r.Error == nil {
		return fmt.Errorf("a command issued an hour ago was answered %q", r.Status)
	}
	t.say("one that was issued an hour ago is answered %q: %s", r.Status, r.Error.Message)
	return nil
}

// balance compares the books of the terminals with those of the backend, and prints them.
func (t *tour) balance() error {
	var held int
	missing := map[punch]int{}
	for _, at := range t.terminals {
		for _, p := range at.punches() {
			held++
			missing[p]++
		}
	}
	b := t.backend.books()
	for p, n := range b.punches {
		missing[p] -= n
	}
	lost, surplus := 0, 0
	for _, n := range missing {
		lost += max(0, n)
		surplus += max(0, -n)
	}
	opened := 0
	for _, at := range t.terminals {
		opened += len(at.State().Doors)
	}
	t.heading("The ledger")
	t.say("punches in the terminals %d, at the backend %d: lost %d, doubled %d (%d came twice under one id)", held, b.distinct, lost, surplus, b.again)
	t.say("unlocks: %d done, %d refused; doors that opened: %d", b.done, b.refused, opened)
	if lost != 0 || surplus != 0 || opened != b.done || b.done != 1 || b.refused != 1 {
		return errors.New("the ledger does not balance")
	}
	t.say("it balances")
	return nil
}

// unlock sends the command as a backend does and waits for its final result.
func (t *tour) unlock(ctx context.Context, id string, at *terminal, issued time.Time) (gatepost.Result, error) {
	before := len(t.backend.results(id))
	if err := t.backend.command(id, at.id, issued); err != nil {
		return gatepost.Result{}, err
	}
	var r gatepost.Result
	err := t.until(ctx, "the answer to "+id, func() bool {
		rs := t.backend.results(id)
		if len(rs) == before {
			return false
		}
		r = rs[len(rs)-1]
		return r.Status.Final()
	})
	return r, err
}

// allArrive waits until the backend has as many punches as the terminals hold.
func (t *tour) allArrive(ctx context.Context) error {
	return t.until(ctx, "all punches to arrive", func() bool {
		held := 0
		for _, at := range t.terminals {
			held += at.State().Records
		}
		return t.backend.count() >= held
	})
}

// until waits for something to become true. The bound is generous: an emulated board is slow.
func (t *tour) until(ctx context.Context, what string, is func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 25*time.Second, fmt.Errorf("waited 25 s for %s", what))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// uplink is what the agent says of its one uplink.
func (t *tour) uplink() agent.UplinkReport {
	for _, u := range t.agent.Report().Uplinks {
		return u
	}
	return agent.UplinkReport{}
}

// invite says what to do while everything keeps running, and from then on tells what arrives.
func (t *tour) invite() {
	self := "gatepost"
	if exe, err := os.Executable(); err == nil && strings.Contains(exe, "go-build") {
		self = "go run ./cmd/gatepost"
	}
	_, port, _ := strings.Cut(t.brokerAddr, ":")
	entrance := t.terminals[0]
	t.heading("Now you")
	fmt.Printf(`Everything keeps running until Ctrl-C. From a second shell:

watch what the backend gets
  mosquitto_sub -p %[1]s -v -t 'gatepost/v1/demo/#'
let user 12 punch at %[2]s
  curl -d '{"user":"12"}' http://%[3]s/punch
open its door, and look whether it did
  mosquitto_pub -p %[1]s -q 1 -t gatepost/v1/demo/devices/%[2]s/command -m '{"id":"'$(date +%%s)'","command":"unlock","issued_at":'$(date +%%s)'}'
  curl http://%[3]s/state
take a terminal away for 20 seconds
  curl -d '{"kind":"reboot","duration":"20s"}' http://%[4]s/fault
ask the agent
  %[5]s status --data-dir %[6]s
  %[5]s buffer ls --data-dir %[6]s
see what made all this, and what the agent logs
  cat %[7]s
  tail -f %[8]s

`, port, entrance.id, entrance.control, t.terminals[1].control, self, t.dataDir(), t.configPath(), filepath.Join(t.dir, "agent.log"))
	t.backend.tell(func(line string) { t.say("the backend got: %s", line) })
}

// scene begins a part of the story.
func (t *tour) scene(ctx context.Context, title string) {
	wait := time.NewTimer(t.pause)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	}
	t.heading(title)
}

func (t *tour) heading(title string) {
	if t.colour {
		title = "\x1b[1m" + title + "\x1b[0m"
	}
	fmt.Printf("\n%s\n", title)
}

// say tells what just happened.
func (t *tour) say(format string, args ...any) {
	now := time.Now().Format("15:04:05")
	if t.colour {
		now = "\x1b[2m" + now + "\x1b[0m"
	}
	fmt.Printf("  %s  %s\n", now, fmt.Sprintf(format, args...))
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
