package edge_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// The three ways a client may be connected.
func (r *rig) clients(sb *api.Sandbox) map[string]func(method, path string, body io.Reader) (*http.Response, error) {
	way := func(c *http.Client, base string) func(string, string, io.Reader) (*http.Response, error) {
		return func(method, path string, body io.Reader) (*http.Response, error) {
			req, err := http.NewRequestWithContext(r.t.Context(), method, base+path, body)
			if err != nil {
				return nil, err
			}
			req.Header.Set("E2b-Sandbox-Id", sb.SandboxID)
			req.Header.Set("E2b-Sandbox-Port", "3000")
			return c.Do(req)
		}
	}
	return map[string]func(string, string, io.Reader) (*http.Response, error){
		"HTTP/1.1":      way(http.DefaultClient, r.plain),
		"HTTP/2, plain": way(r.prior(), r.plain),
		"HTTP/1.1, TLS": way(r.browser(false), hostURL(sb, "3000", "")),
		"HTTP/2, TLS":   way(r.browser(true), hostURL(sb, "3000", "")),
	}
}

// Events arrive when they are sent, not when a buffer is full.
func TestServerSentEvents(t *testing.T) {
	r := newRig(t, nil)
	next := make(chan string)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for event := range next {
			fmt.Fprintf(w, "data: %s\n\n", event)
			w.(http.Flusher).Flush()
			if event == "last" {
				return
			}
		}
	}))
	sb := r.sandbox(nil)
	for name, do := range r.clients(sb) {
		t.Run(name, func(t *testing.T) {
			first := make(chan struct{})
			go func() {
				next <- "one"
				<-first // the second is only sent when the first was read
				next <- "two"
				next <- "last"
			}()
			res, err := do("GET", "/", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			in := bufio.NewReader(res.Body)
			for _, want := range []string{"one", "two", "last"} {
				line, err := in.ReadString('\n')
				if err != nil || line != "data: "+want+"\n" {
					t.Fatalf("got %q, %v; want %q", line, err, want)
				}
				_, _ = in.ReadString('\n')
				if want == "one" {
					close(first)
				}
			}
			if _, err := in.ReadByte(); err != io.EOF {
				t.Errorf("the stream ends with %v", err)
			}
		})
	}
}

func TestWebSocket(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, websocket.Handler(func(ws *websocket.Conn) { _, _ = io.Copy(ws, ws) }))
	sb := r.sandbox(nil)
	for name, dial := range map[string]func() (net.Conn, error){
		"plain": func() (net.Conn, error) { return net.Dial("tcp", strings.TrimPrefix(r.plain, "http://")) },
		"TLS":   func() (net.Conn, error) { return tls.Dial("tcp", r.tls, r.trust("3000-"+sb.SandboxID+"."+domain)) },
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			cfg, _ := websocket.NewConfig("ws://3000-"+sb.SandboxID+"."+domain+"/", "http://x")
			ws, err := websocket.NewClient(cfg, conn)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"one", strings.Repeat("x", 200_000)} {
				if _, err := io.WriteString(ws, text); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(text))
				if _, err := io.ReadFull(ws, got); err != nil || string(got) != text {
					t.Fatalf("got %d bytes, %v", len(got), err)
				}
			}
			if name == "TLS" {
				return
			}
			if err := r.api.Kill(t.Context(), sb.SandboxID); err != nil {
				t.Fatal(err)
			}
			if _, err := ws.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the kill: %v", err)
			}
			sb = r.sandbox(nil)
		})
	}
}

// gRPC: HTTP/2 on both sides, both directions at once, and a status in the trailers.
func TestGRPC(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.ProtoMajor != 2 || req.Header.Get("Te") != "trailers" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		in := bufio.NewReader(req.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			_, _ = io.WriteString(w, "echo "+line)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	}))
	sb := r.sandbox(nil)
	for name, tc := range map[string]struct {
		client *http.Client
		url    string
	}{
		"TLS":   {r.browser(true), hostURL(sb, "3000", "/svc/Method")},
		"plain": {r.prior(), r.plain + "/svc/Method"},
	} {
		t.Run(name, func(t *testing.T) {
			pr, pw := io.Pipe()
			req, _ := http.NewRequestWithContext(t.Context(), "POST", tc.url, pr)
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("Te", "trailers")
			req.Header.Set("E2b-Sandbox-Id", sb.SandboxID)
			req.Header.Set("E2b-Sandbox-Port", "3000")
			wrote := make(chan struct{})
			go func() { _, _ = io.WriteString(pw, "one\n"); close(wrote) }()
			res, err := tc.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			<-wrote
			out := bufio.NewReader(res.Body)
			for _, word := range []string{"one", "two", "three"} {
				if word != "one" {
					_, _ = io.WriteString(pw, word+"\n")
				}
				if line, err := out.ReadString('\n'); err != nil || line != "echo "+word+"\n" {
					t.Fatalf("got %q, %v", line, err)
				}
			}
			pw.Close()
			if rest, err := io.ReadAll(out); err != nil || len(rest) != 0 {
				t.Fatalf("got %q, %v", rest, err)
			}
			if res.StatusCode != 200 || res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("Grpc-Message") != "fine" {
				t.Errorf("got %d, trailers %v", res.StatusCode, res.Trailer)
			}
		})
	}
}

// A client that asks first does not send a body that the guest refuses.
func TestExpectContinue(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		n, _ := io.Copy(io.Discard, req.Body)
		fmt.Fprint(w, n)
	}))
	sb := r.sandbox(nil)
	talk := func(path string) (first string, conn net.Conn, in *bufio.Reader) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.plain, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: 3000\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", path, sb.SandboxID)
		in = bufio.NewReader(conn)
		first, err = in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return first, conn, in
	}
	if first, _, _ := talk("/refuse"); !strings.HasPrefix(first, "HTTP/1.1 413") {
		t.Errorf("refused: got %q", first)
	}
	first, conn, in := talk("/take")
	if !strings.HasPrefix(first, "HTTP/1.1 100") {
		t.Fatalf("taken: got %q", first)
	}
	_, _ = in.ReadString('\n')
	_, _ = io.WriteString(conn, "hello")
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if raw, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(raw) != "5" {
		t.Errorf("got %d %q", res.StatusCode, raw)
	}
}

// A client that goes away is gone for the guest too.
func TestClientGone(t *testing.T) {
	r := newRig(t, nil)
	gone := make(chan struct{}, 1)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		<-req.Context().Done()
		gone <- struct{}{}
	}))
	sb := r.sandbox(nil)
	for name, do := range r.clients(sb) {
		t.Run(name, func(t *testing.T) {
			res, err := do("GET", "/", nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = res.Body.Read(make([]byte, 1))
			res.Body.Close()
			select {
			case <-gone:
			case <-time.After(5 * time.Second):
				t.Fatal("the guest goes on")
			}
		})
	}
}

// endless streams until its client goes, without ever saying how long it will be.
var endless = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/health" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_, _ = io.WriteString(w, "x")
	w.(http.Flusher).Flush()
	<-req.Context().Done()
})

// When a sandbox is killed its streams break off: a client must not take what it got for everything. Afterwards it is not there.
func TestKillCutsStreams(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, endless)
	for _, how := range []string{"HTTP/1.1", "HTTP/2, plain", "HTTP/1.1, TLS", "HTTP/2, TLS"} {
		t.Run(how, func(t *testing.T) {
			sb := r.sandbox(nil)
			do := r.clients(sb)[how]
			res, err := do("GET", "/stream", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if _, err := res.Body.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := r.api.Kill(t.Context(), sb.SandboxID); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(res.Body); err == nil || len(rest) != 0 {
				t.Errorf("the stream ended with %q and no error", rest)
			}
			after, err := do("GET", "/health", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer after.Body.Close()
			if raw, _ := io.ReadAll(after.Body); after.StatusCode != 502 || !strings.Contains(string(raw), "The sandbox was not found") {
				t.Errorf("afterwards: %d %s", after.StatusCode, raw)
			}
		})
	}
}

// One that waits for its first byte is told.
func TestKillAnswersWhoWaits(t *testing.T) {
	r := newRig(t, nil)
	waiting := make(chan struct{})
	r.guest(3000, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		close(waiting)
		<-req.Context().Done()
	}))
	sb := r.sandbox(nil)
	done := make(chan answer, 1)
	go func() { done <- r.byHeader(sb, "3000", "/") }()
	<-waiting
	if err := r.api.Kill(t.Context(), sb.SandboxID); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.status != 502 || !strings.Contains(got.body, "The sandbox was not found") {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

// An edge that nobody tells finds out by itself, from the registry.
func TestEndIsNoticed(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, endless)
	sb := r.sandbox(nil)
	res, err := r.clients(sb)["HTTP/1.1"]("GET", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := r.Node.Stop(t.Context(), sb.SandboxID, tartarus.ReasonTimeout); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the stream ended as if it were whole")
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("noticed after %s", took)
	}
	if got := r.byHeader(sb, "3000", "/health"); got.status != 502 {
		t.Errorf("afterwards: %d", got.status)
	}
}

// The node is asked with every new connection, so that old news does not count for long.
func TestNodeKnowsFirst(t *testing.T) {
	r := newRig(t, nil)
	sb := r.sandbox(nil)
	if got := r.byHeader(sb, "3000", "/"); !strings.Contains(got.body, "port is not open") {
		t.Fatalf("got %s", got.body)
	}
	if err := r.Node.Stop(t.Context(), sb.SandboxID, tartarus.ReasonOOM); err != nil {
		t.Fatal(err)
	}
	if got := r.byHeader(sb, "3000", "/"); !strings.Contains(got.body, "was not found") {
		t.Errorf("got %s", got.body)
	}
}
