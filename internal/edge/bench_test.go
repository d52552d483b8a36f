package edge_test

import (
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/client"
)

// BenchmarkCarry holds the plain port against the same guest reached directly: large answers, large uploads, and small requests.
func BenchmarkCarry(b *testing.B) {
	r := newRig(b, nil)
	block := make([]byte, 64<<10)
	const large = 64 << 20
	guest := r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/down":
			for range large / len(block) {
				_, _ = w.Write(block)
			}
		case "/up":
			_, _ = io.Copy(io.Discard, req.Body)
		default:
			_, _ = io.WriteString(w, "hello")
		}
	}))
	through, err := client.New(client.Config{URL: r.plain})
	if err != nil {
		b.Fatal(err)
	}
	defer through.Close()
	sb := r.sandbox(nil)
	direct := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer direct.CloseIdleConnections()
	for _, way := range []struct {
		name, base string
		client     *http.Client
	}{
		{"direct", guest.URL, direct},
		{"edge", r.plain, through.Guest(sb).HTTPClient(3000)},
		{"tls", hostURL(sb, "3000", ""), r.browser(false)},
	} {
		fetch := func(b *testing.B, method, path string, body io.Reader) {
			req, _ := http.NewRequest(method, way.base+path, body)
			res, err := way.client.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			n, err := io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != 200 || path == "/down" && n != large {
				b.Errorf("got %d, %d bytes, %v", res.StatusCode, n, err)
			}
		}
		b.Run("down/"+way.name, func(b *testing.B) {
			b.SetBytes(large)
			defer cost(b)()
			for b.Loop() {
				fetch(b, "GET", "/down", nil)
			}
		})
		b.Run("up/"+way.name, func(b *testing.B) {
			b.SetBytes(large)
			defer cost(b)()
			for b.Loop() {
				fetch(b, "POST", "/up", io.LimitReader(zeros{}, large))
			}
		})
		b.Run("small/"+way.name, func(b *testing.B) {
			b.ReportAllocs()
			defer cost(b)()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					fetch(b, "GET", "/", nil)
				}
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// cost reports the processor time of client, edge and guest together: unlike the rate it does not depend on what else the machine does.
func cost(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began := used()
	return func() { b.ReportMetric(float64((used()-began).Microseconds())/float64(b.N), "cpu-µs/op") }
}
