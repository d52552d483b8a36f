package guest

import (
	"bytes"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

// fuzzAgent answers without a network and knows one user, root, so that whatever else a fuzzed request asks for
// goes no further than being understood.
func fuzzAgent(f *testing.F) *Agent {
	c := Default()
	c.Root = f.TempDir()
	c.Kernel = system.Kernel{
		SetHostname: func(string) error { return nil }, SetClock: func(time.Time) error { return nil }, AddEntropy: func([]byte) error { return nil },
	}
	c.FromHost = func(net.Addr) bool { return true }
	a, err := New(c)
	if err != nil {
		f.Fatal(err)
	}
	return a
}

// answerTo fails on panics and on statuses that say the agent is at fault.
func answerTo(t *testing.T, a *Agent, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	switch w.Code {
	case http.StatusNotImplemented, http.StatusInsufficientStorage, http.StatusGatewayTimeout: // asked for, full, or given no time
	default:
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), errPanic.Error()) {
		t.Fatalf("a handler panicked: %d %s", w.Code, w.Body)
	}
	return w
}

// FuzzMessage sends arbitrary bodies to every call. The user does not exist, so none has an effect.
func FuzzMessage(f *testing.F) {
	a := fuzzAgent(f)
	procedures := []string{
		"process.Process/Start", "process.Process/StreamInput", "process.Process/SendInput", "process.Process/Connect", "process.Process/Update",
		"process.Process/SendSignal", "filesystem.Filesystem/Stat", "filesystem.Filesystem/ListDir", "filesystem.Filesystem/WatchDir", "filesystem.Filesystem/Move",
	}
	kinds := []string{"application/json", "application/proto", "application/connect+json", "application/connect+proto", "application/grpc+proto", "application/grpc-web+json"}
	f.Add(uint8(0), uint8(2), "60000", []byte("\x00\x00\x00\x00\x02{}"))
	f.Add(uint8(0), uint8(2), "", []byte("\x00\x00\x00\x00\x1c{\"process\":{\"cmd\":\"/bin/ls\"}}"))
	f.Add(uint8(1), uint8(3), "-1", []byte("\x02\xff\xff\xff\xff"))
	f.Add(uint8(2), uint8(0), "1", []byte(`{"process":{"pid":1},"input":{"stdin":"aGk="}}`))
	f.Add(uint8(6), uint8(1), "x", []byte("\x0a\x04/etc"))
	f.Fuzz(func(t *testing.T, procedure, kind uint8, timeout string, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/"+procedures[int(procedure)%len(procedures)], bytes.NewReader(body))
		r.Header.Set("Content-Type", kinds[int(kind)%len(kinds)])
		if timeout != "" {
			r.Header.Set("Connect-Timeout-Ms", timeout)
		}
		r.SetBasicAuth("no-such-user", "")
		answerTo(t, a, r)
	})
}

// FuzzMultipart uploads arbitrary forms to one path.
func FuzzMultipart(f *testing.F) {
	a := fuzzAgent(f)
	path := filepath.Join(f.TempDir(), "file")
	f.Add("multipart/form-data; boundary=b", "", []byte("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\ncontent\r\n--b--\r\n"))
	f.Add("multipart/form-data; boundary=b", "", []byte("--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\ncut off"))
	f.Add("multipart/mixed; boundary=\"b c\"", "gzip", []byte("\x1f\x8b\x08\x00"))
	f.Add("application/octet-stream", "", []byte("x"))
	f.Fuzz(func(t *testing.T, kind, encoding string, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/files?"+url.Values{"path": {path}, "username": {"root"}}.Encode(), bytes.NewReader(body))
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Content-Encoding", encoding)
		w := answerTo(t, a, r)
		if w.Code == 200 && w.Body.String() != "[]" {
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", w.Body, err)
			}
		}
	})
}

// FuzzSignature tries to get past the check without the token: only what sign makes may pass, and only unchanged.
func FuzzSignature(f *testing.F) {
	set := &settings.Settings{Token: "the token"}
	now := time.Unix(1_000_000, 0)
	f.Add("/home/user/a", "read", "", "2000000", "v1_AAAA")
	f.Add("a", "write", "root", "", "")
	f.Add("a:read", "", "user:x", "999999", "v1_")
	f.Fuzz(func(t *testing.T, path, operation, user, expiration, forged string) {
		query := url.Values{"path": {path}, "username": {user}, "signature": {forged}}
		if expiration != "" {
			query.Set("signature_expiration", expiration)
		}
		right := signature(path, operation, user, set.Token, expiration)
		if forged != right && checkSignature(set, query, operation, now) == nil {
			t.Fatalf("%v passes", query)
		}
		query.Set("signature", right)
		err := checkSignature(set, query, operation, now)
		var expires int64
		valid := expiration == ""
		if n, ok := canonicalInt(expiration); ok {
			expires, valid = n, n >= now.Unix()
		}
		if (err == nil) != valid {
			t.Fatalf("expires %q (%d): %v", expiration, expires, err)
		}
	})
}

// canonicalInt parses a number of 64 bits as the SDKs write it: no sign or zero too many.
func canonicalInt(s string) (n int64, ok bool) {
	number, ok := new(big.Int).SetString(s, 10)
	if !ok || number.String() != s || !number.IsInt64() {
		return 0, false
	}
	return number.Int64(), true
}
