package zksim

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Control is how outside programs move the terminal and look into it, as JSON:
//
//	POST /punch  a Punch                    -> {"records":501}
//	POST /fault  {"kind":"delay","duration":"2s", …} as Fault -> {}
//	POST /event  {"bit":512,"data":"37000000"}, data in hex -> {}
//	GET  /state  -> a State
//	GET  /users  -> [User, …]
//	GET  /log?from=0&count=1000 -> [Entry, …], the oldest first, at most 10000 at once
//
// What is wrong with a request is told as {"error":"…"}.
func (t *Terminal) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /punch", func(w http.ResponseWriter, r *http.Request) {
		var p Punch
		if !decode(w, r, &p) {
			return
		}
		switch err := t.Punch(p); {
		case errors.Is(err, ErrDisabled):
			fail(w, http.StatusConflict, err)
		case err != nil:
			fail(w, http.StatusBadRequest, err)
		default:
			reply(w, http.StatusOK, map[string]int{"records": t.State().Records})
		}
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Kind     string `json:"kind"`
			Bytes    int    `json:"bytes"`
			Count    int    `json:"count"`
			Duration string `json:"duration"`
			Code     int    `json:"code"`
			Command  int    `json:"command"`
		}
		if !decode(w, r, &body) {
			return
		}
		f := Fault{Kind: body.Kind, Bytes: body.Bytes, Count: body.Count, Code: body.Code, Command: body.Command}
		if body.Duration != "" {
			d, err := time.ParseDuration(body.Duration)
			if err != nil {
				fail(w, http.StatusBadRequest, fmt.Errorf("duration %q is not like 1m30s", body.Duration))
				return
			}
			f.Duration = d
		}
		if err := t.Fault(f); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		reply(w, http.StatusOK, struct{}{})
	})
	mux.HandleFunc("POST /event", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Bit  uint16 `json:"bit"`
			Data string `json:"data"`
		}
		if !decode(w, r, &body) {
			return
		}
		data, err := hex.DecodeString(body.Data)
		if err == nil {
			err = t.Event(body.Bit, data)
		}
		if err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		reply(w, http.StatusOK, struct{}{})
	})
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, t.State()) })
	mux.HandleFunc("GET /users", func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, t.Users()) })
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, r *http.Request) {
		from, err := query(r, "from", 0, 1<<30)
		count, err2 := query(r, "count", 1000, 10_000)
		if err := errors.Join(err, err2); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		reply(w, http.StatusOK, t.Log(from, count))
	})
	return mux
}

// query reads a number from 0 to most.
func query(r *http.Request, name string, otherwise, most int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%s %q: want a number from 0 to %d", name, s, most)
	}
	return n, nil
}

// decode reads a small JSON object; where it cannot, it has answered.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("body: %w", err))
		return false
	}
	return true
}

func fail(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"error": err.Error()})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
