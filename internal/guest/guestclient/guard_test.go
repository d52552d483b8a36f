package guestclient

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func frame(size int, message string) string {
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(size))
	return string(head) + message
}

func guarded(body io.Reader) io.Reader {
	res := &http.Response{Header: http.Header{"Content-Type": {"application/connect+proto"}}, Body: io.NopCloser(body)}
	guard(&http.Request{}, res)
	return res.Body
}

func TestGuardPassesWholeStreams(t *testing.T) {
	stream := frame(0, "") + frame(3, "abc") + frame(maxFrame, strings.Repeat("x", maxFrame)) + frame(2, "{}")
	for name, r := range map[string]io.Reader{"at once": strings.NewReader(stream), "half": iotest.HalfReader(strings.NewReader(stream)), "single bytes": iotest.OneByteReader(strings.NewReader(stream)), "with error": iotest.DataErrReader(strings.NewReader(stream))} {
		if got, err := io.ReadAll(guarded(r)); err != nil || string(got) != stream {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(stream), err)
		}
	}
}

func TestGuardEndsWhatIsTooLarge(t *testing.T) {
	for _, size := range []int{maxFrame + 1, 1<<32 - 1} {
		for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader} {
			got, err := io.ReadAll(guarded(wrap(strings.NewReader(frame(3, "abc") + frame(size, strings.Repeat("x", 100))))))
			if !tartarus.Is(err, tartarus.TooLarge) || bytes.Contains(got, []byte("xx")) {
				t.Errorf("%d: %d bytes, %v", size, len(got), err)
			}
		}
	}
	plain := &http.Response{Header: http.Header{"Content-Type": {"text/plain"}}, Body: io.NopCloser(strings.NewReader(strings.Repeat("x", 100)))}
	guard(&http.Request{}, plain)
	if got, err := io.ReadAll(plain.Body); err != nil || len(got) != 100 {
		t.Errorf("a file is not touched: %d %v", len(got), err)
	}
	call := &http.Request{Header: http.Header{"Connect-Protocol-Version": {"1"}}}
	endless := &http.Response{Header: http.Header{"Content-Type": {"application/proto"}}, Body: io.NopCloser(zeros{})}
	guard(call, endless)
	if n, err := io.Copy(io.Discard, endless.Body); !tartarus.Is(err, tartarus.TooLarge) || n > maxAnswer+2 {
		t.Errorf("an endless answer: %d %v", n, err)
	}
}

func TestShellCode(t *testing.T) {
	for exit, want := range map[Exit]int{
		{Code: 3, Exited: true}: 3, {Code: -1, Status: "signal: killed"}: 137, {Code: -1, Status: "signal: interrupt"}: 130,
		{Code: -1, Status: "signal: segmentation fault (core dumped)"}: 139, {Code: -1, Status: "signal: of the guest's invention"}: 137,
	} {
		if got := exit.ShellCode(); got != want {
			t.Errorf("%+v: %d, want %d", exit, got, want)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
