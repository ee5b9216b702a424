package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"gatepost/drivers/zk/zksim"
)

// simulate plays a terminal until it is interrupted, for trying gatepost or any other software without one.
func simulate(ctx context.Context, f *flags) error {
	var o zksim.Options
	listen := f.String("listen", "127.0.0.1:4370", "be a terminal at `ADDR`; port 0 takes a free one")
	control := f.String("control", "", "take POST /punch, POST /fault and GET /state as JSON over HTTP at `ADDR`; anyone who reaches it may")
	f.StringVar(&o.Serial, "serial", "GP00000001", "the terminal's serial number `SN`")
	key := f.Uint("key", 0, "ask for the comm key `N`; 0: none")
	f.IntVar(&o.Users, "users", 20, "know `N` users, with the ids 1 to N")
	f.IntVar(&o.UserSize, "user-size", 72, "store users in `BYTES`: 28 as black-and-white terminals, 72 as colour ones")
	f.IntVar(&o.Records, "records", 500, "hold `N` records at first, the same ones each time")
	f.IntVar(&o.RecordSize, "record-size", 40, "store records in `BYTES`: 16, 40 or 49")
	f.DurationVar(&o.Pause, "pause", 0, "wait `DURATION` after each frame of a bulk answer")
	f.StringVar(&o.Bulk, "bulk", "buffered", "answer bulk reads in the `STYLE` buffered, stream or direct")
	f.StringVar(&o.OneClient, "one-client", "refuse", "with a second client do `WHAT`: refuse, hang, kick or off")
	f.BoolVar(&o.OddIDs, "odd-ids", false, "give some users ids with leading zeros and letters")
	zone := f.String("zone", "", "keep the wall clock of the time zone `NAME`, like Asia/Jakarta (default the board's)")
	verbose := f.Bool("verbose", false, "say on stderr who comes, what is refused and which fault strikes")
	words, err := f.take("zk")
	if err != nil {
		return err
	}
	if words[0] != "zk" {
		return usagef("simulate: there is no simulator %q%s; there is zk", words[0], didYouMean(words[0], []string{"zk"}))
	}
	if *key > 1<<32-1 {
		return usagef("simulate: --key: %d is too large", *key)
	}
	o.Key = uint32(*key)
	if *zone != "" {
		if o.Zone, err = time.LoadLocation(*zone); err != nil {
			return usagef("simulate: --zone: %q is not a time zone like Asia/Jakarta", *zone)
		}
	}
	if *verbose {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if err := o.Check(); err != nil {
		return usagef("simulate: %v", err)
	}
	return serveTerminal(ctx, zksim.New(o), *listen, *control)
}

func serveTerminal(ctx context.Context, t *zksim.Terminal, listen, control string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("simulate: --listen: %w", err)
	}
	fmt.Printf("terminal %s listens on %s\n", t.State().Serial, l.Addr())

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	failed := make(chan error, 2)
	if control != "" {
		cl, err := net.Listen("tcp", control)
		if err != nil {
			l.Close()
			return fmt.Errorf("simulate: --control: %w", err)
		}
		fmt.Printf("control is at http://%s\n", cl.Addr())
		wg.Go(func() { failed <- serveHTTP(ctx, cl, t.Control()) })
	}
	wg.Go(func() { failed <- t.Serve(ctx, l) })
	err = <-failed
	cancel()
	return err
}

// serveHTTP answers on l until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
