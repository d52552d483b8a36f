package cli

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

func TestTable(t *testing.T) {
	tb := table{head: []string{"ID", "NAME"}}
	tb.row("a", "first")
	tb.row("longer", "zweite Größe")
	tb.rows = append(tb.rows, []cell{{"x", red}, {"evil\x1b]0;title\a\nname", plain}})
	var out bytes.Buffer
	if err := tb.print(&out, false); err != nil {
		t.Fatal(err)
	}
	want := "ID      NAME\na       first\nlonger  zweite Größe\nx       evil?]0;title??name\n"
	if out.String() != want {
		t.Errorf("got\n%q, want\n%q", out.String(), want)
	}
	out.Reset()
	if err := tb.print(&out, true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), red+"x"+reset+"       evil") {
		t.Errorf("colour moves columns: %q", out.String())
	}
}

func TestNoColourOffATerminal(t *testing.T) {
	e := &Env{lookup: lookup(nil)}
	if e.coloured(&bytes.Buffer{}) {
		t.Error("a buffer is no terminal")
	}
}

func TestSpanAndSize(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1500 * time.Millisecond: "2s", 59 * time.Second: "59s", 61 * time.Second: "1m01s",
		2*time.Hour + 5*time.Minute: "2h05m", 50 * time.Hour: "2d02h",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1.0KiB", 1536: "1.5KiB", 5 << 30: "5.0GiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestMegabytes(t *testing.T) {
	for in, want := range map[string]int64{"512": 512, "512M": 512, "512m": 512, "512MiB": 512, "512MB": 512, "2G": 2048, "1.5g": 1536, "1T": 1 << 20, "2048K": 2, "1K": 1} {
		got, err := megabytes("memory", in)
		if err != nil || got == nil || *got != want {
			t.Errorf("%s: %v, %v, want %d", in, got, err, want)
		}
	}
	if got, err := megabytes("memory", ""); got != nil || err != nil {
		t.Errorf("empty: %v, %v", got, err)
	}
	for _, in := range []string{"x", "-1", "0", "1P", "M", "1e99", "NaN", "Inf", "1 G"} {
		if got, err := megabytes("memory", in); err == nil || !strings.Contains(err.Error(), "--memory") {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
}

func TestEnvironmentFlags(t *testing.T) {
	got, err := environment([]string{"A=1", "B=x=y", "C=", "HOME", "ABSENT"}, lookup(map[string]string{"HOME": "/h"}))
	if err != nil || len(got) != 4 || got["A"] != "1" || got["B"] != "x=y" || got["HOME"] != "/h" {
		t.Errorf("%v, %v", got, err)
	}
	if v, ok := got["C"]; !ok || v != "" {
		t.Error("an empty value is a value")
	}
	if _, err := environment([]string{"=x"}, lookup(nil)); err == nil {
		t.Error("a variable without a name")
	}
}

func TestExitCodes(t *testing.T) {
	for want, err := range map[int]error{
		127: tartarus.Errorf(tartarus.NotFound, "command 'x' not found in PATH"),
		126: tartarus.Errorf(tartarus.Forbidden, "start 'x': permission denied"),
		125: tartarus.Errorf(tartarus.GuestGone, "the sandbox was not found"),
	} {
		var errs bytes.Buffer
		e := &Env{Stderr: &errs}
		if got := e.finish(startFailure(err)); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
		if got := errs.String(); got != "tartarus: "+err.Error()+"\n" {
			t.Errorf("printed %q", got)
		}
	}
}

func TestErrorsAreOneLineWithANextStep(t *testing.T) {
	var errs bytes.Buffer
	e := &Env{Stderr: &errs}
	refused := tartarus.Errorf(tartarus.Unavailable, "reach 127.0.0.1:7300: %w", &net.OpError{Op: "dial", Err: errors.New("connection refused")})
	if code := e.finish(fmt.Errorf("list: %w", refused)); code != 125 {
		t.Errorf("code %d", code)
	}
	if got := errs.String(); !strings.Contains(got, "tartarus up") || !strings.Contains(got, "--url") || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
	errs.Reset()
	e.finish(errors.Join(errors.New("one"), errors.New("two")))
	if got := errs.String(); got != "tartarus: one; two\n" {
		t.Errorf("%q", got)
	}
	errs.Reset()
	e.finish(tartarus.Errorf(tartarus.Unauthenticated, "unknown API key"))
	if got := errs.String(); !strings.Contains(got, "TARTARUS_API_KEY") {
		t.Errorf("%q", got)
	}
}

func TestUsageErrorsAre125(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"}, {"config", "--nonsense"}, {"run"}, {"exec", "id"}, {"kill"}, {"kill", "--all", "x"}, {"cp", "a"}, {"cp", "a", "b"},
		{"run", "--memory", "much", "--", "true"}, {"run", "--cp", "x", "--", "true"}, {"run", "--no-network", "--allow", "1.1.1.1", "--", "true"},
		{"run", "--header", "a.example", "--", "true"}, {"run", "--token", "x", "--", "true"}, {"run", "--egress-proxy", "a:b@c:1", "--", "true"}, {"network", "i1", "--egress-proxy-tls"},
		{"timeout", "id", "soon"}, {"url", "id", "0"}, {"doctor", "--fix"}, {"config", "extra"}, {"run", "--cpus", "-1", "--", "true"},
	} {
		var errs bytes.Buffer
		e := &Env{Stdin: strings.NewReader(""), Stdout: &bytes.Buffer{}, Stderr: &errs, lookup: lookup(nil), global: global{data: t.TempDir()}}
		if code := e.main(t.Context(), append(args, "--data", t.TempDir())); code != 125 {
			t.Errorf("%v: code %d", args, code)
		}
		if got := errs.String(); !strings.HasPrefix(got, "tartarus: ") || strings.Count(got, "\n") != 1 {
			t.Errorf("%v: printed %q", args, got)
		}
	}
}

func TestPrintAll(t *testing.T) {
	x := newFixture(t)
	row := func(n int) []cell { return cells(strconv.Itoa(n), strings.Repeat("x", n)) }
	for _, c := range []struct {
		json  bool
		found []int
		want  string
	}{
		{false, nil, "N  X\n"}, {false, []int{2, 30}, "N   X\n2   xx\n30  " + strings.Repeat("x", 30) + "\n"},
		{true, nil, "[]\n"}, {true, []int{2}, "[\n  2\n]\n"},
	} {
		x.out.Reset()
		x.JSON = c.json
		if err := printAll(x.Env, c.found, []string{"N", "X"}, row); err != nil || x.out.String() != c.want {
			t.Errorf("%v as JSON %v: %q, %v", c.found, c.json, x.out.String(), err)
		}
	}
}
