// Package book keeps book.db: what must outlive the queue of records. Which terminal stands behind each device, how far
// its log was read, what a driver wants to remember, and the ledger of commands, which is why no door opens twice.
// The agent calls it. It never deletes a damaged file.
package book

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"gatepost"
)

const (
	lazySync   = 200 * time.Millisecond // how long a write that nobody waits for may stay unsynced
	pruneEvery = time.Hour
	prunePause = 100 * time.Millisecond // between two bites, so that an unlock never waits for long
	pruneBite  = 100                    // rows
	keepFor    = 30 * 24 * time.Hour
	keepRows   = 20_000
	checkAfter = time.Hour // from the start to the first look for damage
	checkEvery = 24 * time.Hour
)

// Book is an open book.db. Its methods are safe for several goroutines.
//
// Work on the database is a few microseconds and happens under mu; only what must be on disk waits for a sync, outside of
// mu and together with whoever else waits.
type Book struct {
	path  string
	log   *slog.Logger
	now   func() time.Time
	fsync func(*os.File) error

	mu      sync.Mutex
	s       *store
	written int64 // writes so far
	failed  error // the first failed sync: what the kernel then still has of our writes cannot be known

	syncing sync.Mutex // held during a sync; taken before mu
	synced  int64      // writes known to be on disk

	dirty  chan struct{} // a write that nobody waits for
	broken chan struct{} // closed with failed
}

// Open opens or makes the file. A damaged one is set aside whole; what it still told goes into a new one. log may be nil.
func Open(ctx context.Context, path string, log *slog.Logger) (*Book, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := &Book{path: path, log: log, now: time.Now, fsync: datasync, dirty: make(chan struct{}, 1), broken: make(chan struct{})}
	s, err := openStore(ctx, path)
	if damaged(err) {
		s, err = b.replace(ctx, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	b.s = s
	return b, nil
}

// Close syncs and closes. Nothing may be under way.
func (b *Book) Close() error {
	err := b.Sync()
	b.mu.Lock()
	defer b.mu.Unlock()
	if cerr := b.s.close(); err == nil {
		err = cerr
	}
	return err
}

// do runs work on the database. Where the file turns out to be damaged it is replaced and work is tried once more.
// A context that ends does not interrupt work, which is short, lest a write be left in doubt.
func (b *Book) do(ctx context.Context, work func(context.Context, *store) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ctx = context.WithoutCancel(ctx)
	s, err := b.try(ctx, work)
	if damaged(err) {
		if err = b.repair(ctx, s, err); err == nil {
			_, err = b.try(ctx, work)
		}
	}
	return explain(err)
}

func (b *Book) try(ctx context.Context, work func(context.Context, *store) error) (*store, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed != nil {
		return b.s, b.failed
	}
	return b.s, work(ctx, b.s)
}

// repair replaces the damaged file behind s, unless somebody else has done so.
func (b *Book) repair(ctx context.Context, s *store, cause error) error {
	b.syncing.Lock()
	defer b.syncing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.s != s || b.failed != nil {
		return b.failed
	}
	_ = s.close() // its errors say nothing new
	fresh, err := b.replace(ctx, cause)
	if err != nil {
		b.fail(fmt.Errorf("replace damaged %s: %w", b.path, err))
		return b.failed
	}
	b.s, b.synced = fresh, b.written // replace synced what it salvaged
	return nil
}

// writeLazily is do for a statement that changes rows and may be synced later. It says how many rows.
func (b *Book) writeLazily(ctx context.Context, query string, args ...any) (rows int64, err error) {
	err = b.do(ctx, func(ctx context.Context, s *store) error {
		rows, err = s.exec(ctx, query, args...)
		if rows > 0 {
			b.written++
		}
		return err
	})
	if rows > 0 {
		b.syncSoon()
	}
	return rows, err
}

// syncSoon has Run sync what was written so far.
func (b *Book) syncSoon() {
	select {
	case b.dirty <- struct{}{}:
	default: // Run knows
	}
}

// sync returns when write n is on disk. Callers that come while a sync is under way share the next one.
func (b *Book) sync(n int64) error {
	b.syncing.Lock()
	defer b.syncing.Unlock()
	if b.synced >= n {
		return nil
	}
	b.mu.Lock()
	upto, wal, failed := b.written, b.s.wal, b.failed
	b.mu.Unlock()
	if failed != nil {
		return failed
	}
	if err := b.fsync(wal); err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.fail(explain(fmt.Errorf("sync %s: %w", b.path, err)))
		return b.failed
	}
	b.synced = upto
	return nil
}

// Sync returns when all that was written so far is on disk.
func (b *Book) Sync() error {
	b.mu.Lock()
	n := b.written
	b.mu.Unlock()
	return b.sync(n)
}

// fail stops the book for good; the caller holds mu.
func (b *Book) fail(err error) {
	if b.failed == nil {
		b.failed = err
		close(b.broken)
	}
}

// Run syncs what was not waited for, prunes the ledger and looks for damage, until ctx ends. It returns early when the disk failed: the
// book then refuses all work, and only opening it again tells what is on the disk.
func (b *Book) Run(ctx context.Context) error {
	lazy, prune := time.NewTimer(lazySync), time.NewTimer(prunePause)
	defer lazy.Stop()
	defer prune.Stop()
	armed := true // lazy runs
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { b.checkDaily(ctx) })
	for {
		select {
		case <-ctx.Done():
			return b.Sync()
		case <-b.broken:
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.failed
		case <-b.dirty:
			if !armed {
				lazy.Reset(lazySync)
				armed = true
			}
		case <-lazy.C:
			armed = false
			if err := b.Sync(); err != nil {
				return err
			}
		case <-prune.C:
			more, err := b.prune(ctx)
			if err != nil && ctx.Err() == nil {
				b.log.Warn("ledger not pruned", "err", err, "hint", gatepost.HintOf(err))
			}
			prune.Reset(pruneEvery)
			if more {
				prune.Reset(prunePause)
			}
		}
	}
}
