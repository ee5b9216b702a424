package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	_ "time/tzdata" // boards come without /usr/share/zoneinfo, and every device needs its zone

	"gatepost"
	"gatepost/agent"
	"gatepost/agent/book"
	"gatepost/agent/config"
	"gatepost/buffer"
)

// stopWithin is how long a stop may take; what hangs then is left to the next start, as after a power cut.
const stopWithin = 5 * time.Second

func run(ctx context.Context, f *flags) error {
	path := f.configFlag()
	level := slog.LevelInfo
	f.TextVar(&level, "log-level", slog.LevelInfo, "log from `LEVEL` on: debug, info, warn or error")
	if _, err := f.take(); err != nil {
		return err
	}
	// Half of Go's usual garbage: on these boards memory is dearer than the few collections an idle agent makes.
	debug.SetGCPercent(50)

	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: plainTime}))
	s, err := openSite(ctx, *path, log, agent.Options{})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(stopWithin, func() {
			log.Error("did not stop in time; what is open now is settled at the next start", "took", stopWithin)
			os.Exit(exitFailed)
		})
	})()

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				s.reload(ctx)
			}
		}
	})
	err = s.run(ctx)
	cancel()
	wg.Wait()
	return err
}

// plainTime leaves the time to journald where that reads the log.
func plainTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 && os.Getenv("JOURNAL_STREAM") != "" {
		return slog.Attr{}
	}
	return a
}

// site is an agent and what it stands on: a config, a locked data directory, the two files in it and the control socket.
type site struct {
	conf    *config.Config
	kit     config.Kit
	log     *slog.Logger
	release func() error
	book    *book.Book
	store   *buffer.Store
	agent   *agent.Agent
	control net.Listener

	mu     sync.Mutex // guards what follows
	early  []gatepost.Event
	record func(gatepost.Event) // nil before the agent runs
}

// openSite opens what the config at path says. It talks to no broker and no terminal. Of o, only what a config cannot say
// is used.
func openSite(ctx context.Context, path string, log *slog.Logger, o agent.Options) (_ *site, err error) {
	// Read twice: drivers want their memory in the book, which lies where the config says.
	first, err := loadConfig(path, config.Kit{})
	if err != nil {
		return nil, err
	}
	dir := first.Agent.DataDir
	s := &site{log: log}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Err: fmt.Errorf("data directory: %w", err),
			Hint: "agent.data_dir must be a directory that this user may write to"}
	}
	if s.release, err = agent.LockDir(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.book, err = book.Open(ctx, filepath.Join(dir, "book.db"), log); err != nil {
		return nil, err
	}
	s.store, err = buffer.Open(ctx, filepath.Join(dir, "records.db"), buffer.Options{
		MaxBytes: first.Buffer.MaxBytes, MaxAge: first.Buffer.MaxAge, Log: log, Event: s.event})
	if err != nil {
		return nil, err
	}
	s.kit = config.Kit{
		DeviceEnv: func(id gatepost.DeviceID) gatepost.Env {
			return gatepost.Env{ID: id, Log: log.With("device", string(id)), State: s.book.KeyValue(id)}
		},
		UplinkEnv: func(id, agentID string) gatepost.UplinkEnv {
			return gatepost.UplinkEnv{ID: id, Agent: agentID, Log: log.With("uplink", id)}
		},
	}
	if s.conf, err = loadConfig(path, s.kit); err != nil {
		return nil, err
	}
	if !sameBoard(first, s.conf) {
		return nil, fmt.Errorf("%s changed while it was read; start again", path)
	}
	for _, w := range s.conf.Warnings {
		log.Warn("config", "hint", w.String())
	}
	if s.control, err = agent.ListenControl(dir); err != nil {
		return nil, err
	}
	o.ID, o.Version, o.Zone = s.conf.Agent.ID, version, s.conf.Agent.ZoneName
	o.Trusted, o.DataDir = s.conf.Agent.Clock == config.ClockTrusted, dir
	o.Store, o.Book, o.Log = s.store, s.book, log
	o.Devices, o.Uplinks = s.conf.Devices, s.conf.Uplinks
	s.agent = agent.New(o)
	return s, nil
}

// run works until ctx ends, then closes everything. It may be called once.
func (s *site) run(ctx context.Context) error {
	s.log.Info("agent starts", "addr", s.conf.Agent.DataDir, "count", len(s.conf.Devices))
	s.recordEarly(ctx)
	control, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.agent.ServeControl(control, s.control); err != nil {
			s.log.Error("the command line cannot reach this agent any more", "err", err)
		}
	})
	err := s.agent.Run(ctx)
	stop()
	wg.Wait()
	return errors.Join(err, s.close())
}

// close closes what is open, in the order in which it matters: the lock last.
func (s *site) close() error {
	var errs []error
	if s.control != nil {
		if err := s.control.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.book != nil {
		errs = append(errs, s.book.Close())
	}
	return errors.Join(append(errs, s.release())...)
}

// event takes what the store has to say. It opens before there is an agent to write it down.
func (s *site) event(e gatepost.Event) {
	s.mu.Lock()
	record := s.record
	if record == nil {
		s.early = append(s.early, e)
	}
	s.mu.Unlock()
	if record != nil {
		record(e)
	}
}

// recordEarly writes down what the store said while it opened; from now on events go straight to the agent.
func (s *site) recordEarly(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	record := func(e gatepost.Event) {
		if err := s.agent.Record(ctx, e); err != nil {
			s.log.Error("event not stored", "err", err)
		}
	}
	s.mu.Lock()
	early := s.early
	s.early, s.record = nil, record
	s.mu.Unlock()
	for _, e := range early {
		record(e)
	}
}

// reload reads the config again and has the agent follow it. A config with mistakes changes nothing.
func (s *site) reload(ctx context.Context) {
	c, err := loadConfig(s.conf.Path, s.kit)
	if ms, ok := errors.AsType[config.Mistakes](err); ok {
		for _, m := range ms {
			s.log.Error("config not taken, the old one goes on", "err", m.String())
		}
		return
	}
	if err != nil {
		s.log.Error("config not taken, the old one goes on", "err", err, "hint", gatepost.HintOf(err))
		return
	}
	if !sameBoard(s.conf, c) {
		s.log.Error("config not taken, the old one goes on", "err", "sections agent or buffer changed", "hint", "that takes a restart")
		return
	}
	for _, w := range c.Warnings {
		s.log.Warn("config", "hint", w.String())
	}
	if err := s.agent.Reload(ctx, c.Devices, c.Uplinks); err != nil {
		s.log.Error("config not taken", "err", err)
		return
	}
	s.conf = c
	s.log.Info("config taken", "count", len(c.Devices))
}

// sameBoard says whether two configs agree in what cannot change while the agent runs.
func sameBoard(a, b *config.Config) bool {
	x, y := a.Agent, b.Agent
	x.Zone, y.Zone = nil, nil
	return x == y && a.Buffer == b.Buffer
}
