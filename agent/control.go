package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"gatepost"
)

// SocketName is the unix socket in the data directory on which a running agent answers its own command line.
const SocketName = "gatepost.sock"

// ListenControl opens the control socket. A socket left by an earlier run is removed: the caller holds the directory's lock.
func ListenControl(dir string) (net.Listener, error) {
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// ServeControl answers on l until ctx ends. Who may open the socket's file may ask: commands that come here are local and
// fresh on arrival.
//
//	GET  /v1/status           Report
//	GET  /v1/buffer           buffer.Stats
//	GET  /v1/records?limit=N  the newest records, oldest first
//	GET  /v1/parked?limit=N   records that an uplink will never take
//	POST /v1/command          a command; answers its final result
func (a *Agent) ServeControl(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.Report()) })
	mux.HandleFunc("GET /v1/buffer", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.store.Stats()) })
	mux.HandleFunc("GET /v1/records", a.serveRecords)
	mux.HandleFunc("GET /v1/parked", a.serveParked)
	mux.HandleFunc("POST /v1/command", a.serveCommand)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a caller that has gone needs no answer
}

func limitOf(r *http.Request) int {
	n, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || n < 1 {
		n = 20
	}
	return min(n, 1000)
}

func (a *Agent) serveRecords(w http.ResponseWriter, r *http.Request) {
	limit := limitOf(r)
	head := a.store.Head()
	rs, err := a.store.Read(r.Context(), head-int64(limit), head, limit, 4<<20)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := make([]json.RawMessage, len(rs))
	for i := range rs {
		out[i] = rs[i].AppendJSON(nil, a.opts.ID, false)
	}
	reply(w, out)
}

// parked is a parked record as the control socket tells it.
type parked struct {
	Uplink string          `json:"uplink"`
	Reason string          `json:"reason"`
	At     time.Time       `json:"at"`
	Record json.RawMessage `json:"record"`
}

func (a *Agent) serveParked(w http.ResponseWriter, r *http.Request) {
	ps, err := a.store.Parked(r.Context(), limitOf(r))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := make([]parked, len(ps))
	for i := range ps {
		out[i] = parked{ps[i].Uplink, ps[i].Reason, ps[i].At, ps[i].AppendJSON(nil, a.opts.ID, false)}
	}
	reply(w, out)
}

func (a *Agent) serveCommand(w http.ResponseWriter, r *http.Request) {
	var c gatepost.Command
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		http.Error(w, "command: "+plainJSON(err).Error(), http.StatusBadRequest)
		return
	}
	c.Local, c.Origin = true, "local"
	res, err := a.Do(r.Context(), c)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, res)
}
