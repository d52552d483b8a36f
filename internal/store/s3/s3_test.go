package s3_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3/s3test"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBlobs(t *testing.T) {
	server := s3test.Start(t)
	storetest.Blobs(t, func(*testing.T) snapshot.Blobs { return server.Open() })
}

// TestBadServer holds that passing failures are tried again, and that lasting ones have a kind and tell no secret.
func TestBadServer(t *testing.T) {
	server := s3test.Start(t)
	cfg := server.Config()
	target, err := url.Parse(cfg.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int32
	proxy := httputil.NewSingleHostReverseProxy(target)
	flaky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if failures.Add(-1) >= 0 {
			_, _ = io.Copy(io.Discard, r.Body)
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		r.Host = target.Host
		proxy.ServeHTTP(w, r)
	}))
	defer flaky.Close()

	// The signature covers the host name, so the client must speak to the proxy under the server's.
	store, err := s3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s3.Via(store, flaky.Listener.Addr().String())
	failures.Store(2)
	if err := store.Put(t.Context(), "flaky", strings.NewReader("x")); err != nil {
		t.Error("two failures are too many: ", err)
	}
	wrong := cfg
	wrong.SecretKey = "another-secret"
	for name, c := range map[string]s3.Config{"wrong key": wrong, "no bucket": {Endpoint: cfg.Endpoint, Bucket: "none", AccessKey: cfg.AccessKey, SecretKey: cfg.SecretKey, PathStyle: true}} {
		store, err := s3.New(c)
		if err != nil {
			t.Fatal(err)
		}
		err = store.Put(t.Context(), "x", strings.NewReader("x"))
		if err == nil || strings.Contains(fmt.Sprintf("%+v", err), c.SecretKey) {
			t.Errorf("%s: %v", name, err)
		}
		store.Close()
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "store", cfg, "again", fmt.Sprint(cfg))
	if strings.Contains(log.String(), cfg.SecretKey) || strings.Contains(log.String(), cfg.AccessKey) {
		t.Error("credentials are logged: ", log.String())
	}
}

// TestMemory holds that an upload takes the memory of its parts, not of the blob.
func TestMemory(t *testing.T) {
	store := s3test.Start(t).Open()
	const size = 300 << 20
	var peak uint64
	src := &watched{r: io.LimitReader(rand.NewChaCha8([32]byte{}), size), peak: &peak}
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if err := store.Put(t.Context(), "big", src); err != nil {
		t.Fatal(err)
	}
	if grown := int64(peak) - int64(before.HeapAlloc); grown > 160<<20 {
		t.Errorf("the heap grew by %d MB for a blob of %d", grown>>20, size>>20)
	}
	if h, err := store.Head(t.Context(), "big"); err != nil || h.Size != size {
		t.Errorf("head: %+v, %v", h, err)
	}
}

// watched looks at the heap now and then while it is read.
type watched struct {
	r    io.Reader
	n    int64
	peak *uint64
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if w.n/(16<<20) != (w.n+int64(n))/(16<<20) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		*w.peak = max(*w.peak, m.HeapAlloc)
	}
	w.n += int64(n)
	return n, err
}

func TestConfig(t *testing.T) {
	good := s3.Config{Bucket: "b", AccessKey: "a", SecretKey: "s"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, f := range map[string]func(*s3.Config){
		"no bucket": func(c *s3.Config) { c.Bucket = "" }, "no key": func(c *s3.Config) { c.AccessKey = "" },
		"no scheme":      func(c *s3.Config) { c.Endpoint = "s3.example.com" },
		"key in the URL": func(c *s3.Config) { c.Endpoint = "https://a:s@s3.example.com" },
	} {
		c := good
		f(&c)
		if err := c.Validate(); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
