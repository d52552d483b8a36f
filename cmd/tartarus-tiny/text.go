package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

var textApplets = map[string]applet{
	"head": head, "tail": tail, "wc": wc, "sort": sortLines, "uniq": uniq, "cut": cut, "tr": tr, "seq": seq, "yes": yes,
	"echo": echo, "printf": builtin("printf"), "test": builtin("test"), "[": builtin("["),
	"true": func([]string) error { return nil }, "false": func([]string) error { return exitCode(1) },
	"nl": numberLines, "rev": reverse, "tac": tac,
}

// echo prints its arguments. Options are the shell's affair.
func echo(args []string) error {
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		return builtin("echo")(args)
	}
	_, err := os.Stdout.WriteString(strings.Join(args, " ") + "\n")
	return err
}

// builtin runs a builtin of the shell as a command.
func builtin(name string) applet {
	return func(args []string) error {
		r, err := interp.New(interp.StdIO(os.Stdin, os.Stdout, os.Stderr))
		if err != nil {
			return err
		}
		prog, err := syntax.NewParser().Parse(strings.NewReader(quote(append([]string{name}, args...))), name)
		if err != nil {
			return err
		}
		return (&session{runner: r}).code(prog)
	}
}

// input opens the named files one after another, "-" or none being stdin, and hands each to do.
func input(applet string, names []string, do func(name string, r io.Reader) error) error {
	if len(names) == 0 {
		names = []string{"-"}
	}
	return each(applet, names, func(name string) error {
		if name == "-" {
			return do(name, os.Stdin)
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return do(name, f)
	})
}

// lines calls do for each line, without its end, until do returns false.
func lines(r io.Reader, do func(line []byte) bool) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 && !do(bytes.TrimSuffix(line, []byte("\n"))) {
			return nil
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// countArg turns the old form -20 into -n 20.
func countArg(args []string) []string {
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] >= '0' && args[0][1] <= '9' {
		return append([]string{"-n", args[0][1:]}, args[1:]...)
	}
	return args
}

func head(args []string) error {
	o, err := parse("n:c:q", countArg(args), "lines=n", "bytes=c")
	if err != nil {
		return err
	}
	n := int64(10)
	if v := cmp.Or(o.value["c"], o.value["n"]); v != "" {
		if n, err = parseSize(strings.TrimPrefix(v, "-")); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	first := true
	return input("head", o.rest, func(name string, r io.Reader) error {
		if len(o.rest) > 1 && !o.has("q") {
			fmt.Fprintf(out, "%s==> %s <==\n", strings.Repeat("\n", btoi(!first)), name)
		}
		first = false
		if o.has("c") {
			_, err := io.Copy(out, io.LimitReader(r, n))
			return err
		}
		if strings.HasPrefix(o.value["n"], "-") { // all but the last n
			var held [][]byte
			return lines(r, func(line []byte) bool {
				if held = append(held, line); int64(len(held)) > n {
					fmt.Fprintf(out, "%s\n", held[0])
					held = held[1:]
				}
				return true
			})
		}
		left := n
		if left == 0 {
			return nil
		}
		return lines(r, func(line []byte) bool {
			out.Write(line)
			out.WriteByte('\n')
			left--
			return left > 0
		})
	})
}

func tail(args []string) error {
	o, err := parse("n:c:fFq", countArg(args), "lines=n", "bytes=c", "follow=f")
	if err != nil {
		return err
	}
	v := cmp.Or(o.value["c"], o.value["n"], "10")
	n, err := parseSize(strings.TrimLeft(v, "+-"))
	if err != nil {
		return err
	}
	err = input("tail", o.rest, func(name string, r io.Reader) error {
		if len(o.rest) > 1 && !o.has("q") {
			fmt.Printf("==> %s <==\n", name)
		}
		if o.has("c") && !strings.HasPrefix(v, "+") {
			return tailBytes(r, n)
		}
		return tailLines(r, n, strings.HasPrefix(v, "+"))
	})
	if err != nil || !o.has("f") && !o.has("F") || len(o.rest) != 1 {
		return err
	}
	return follow(o.rest[0])
}

func tailBytes(r io.Reader, n int64) error {
	var kept []byte
	buf := make([]byte, 64<<10)
	for {
		m, err := r.Read(buf)
		kept = append(kept, buf[:m]...)
		kept = kept[max(0, int64(len(kept))-n):]
		if err != nil {
			os.Stdout.Write(kept)
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

func tailLines(r io.Reader, n int64, from bool) error {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	var ring [][]byte
	count := int64(0)
	err := lines(r, func(line []byte) bool {
		count++
		switch {
		case from && count >= n:
			fmt.Fprintf(out, "%s\n", line)
		case !from && n > 0:
			if int64(len(ring)) == n {
				ring = ring[1:]
			}
			ring = append(ring, line)
		}
		return true
	})
	for _, line := range ring {
		fmt.Fprintf(out, "%s\n", line)
	}
	return err
}

// follow prints what is appended, and starts over when the file gets shorter.
func follow(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	off, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for {
		n, err := io.Copy(os.Stdout, f)
		if err != nil {
			return err
		}
		off += n
		if info, err := f.Stat(); err == nil && info.Size() < off {
			off, _ = f.Seek(0, io.SeekStart)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func wc(args []string) error {
	o, err := parse("lwcmL", args, "lines=l", "words=w", "bytes=c")
	if err != nil {
		return err
	}
	if len(o.count) == 0 {
		o.count = map[string]int{"l": 1, "w": 1, "c": 1}
	}
	var total [4]int64
	show := func(n [4]int64, name string) {
		var cells []string
		for i, flag := range []string{"l", "w", "m", "c"} {
			if o.has(flag) {
				cells = append(cells, fmt.Sprintf("%*d", 7*btoi(len(o.count) > 1 || len(o.rest) > 1), n[i]))
			}
		}
		if name != "-" {
			cells = append(cells, name)
		}
		fmt.Println(strings.Join(cells, " "))
	}
	err = input("wc", o.rest, func(name string, r io.Reader) error {
		var n [4]int64
		buf, inWord := make([]byte, 64<<10), false
		for {
			m, err := r.Read(buf)
			for _, c := range buf[:m] {
				n[0] += int64(btoi(c == '\n'))
				space := c == ' ' || c >= '\t' && c <= '\r'
				n[1] += int64(btoi(!space && !inWord))
				inWord = !space
				n[2] += int64(btoi(utf8.RuneStart(c)))
			}
			n[3] += int64(m)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		for i := range n {
			total[i] += n[i]
		}
		show(n, name)
		return nil
	})
	if len(o.rest) > 1 {
		show(total, "total")
	}
	return err
}

func sortLines(args []string) error {
	o, err := parse("nrufk:t:bhs", args, "numeric-sort=n", "reverse=r", "unique=u")
	if err != nil {
		return err
	}
	var all []string
	if err := input("sort", o.rest, func(_ string, r io.Reader) error {
		return lines(r, func(line []byte) bool { all = append(all, string(line)); return true })
	}); err != nil {
		return err
	}
	from, to, mods, err := sortKey(o.value["k"])
	if err != nil {
		return err
	}
	numeric := o.has("n") || strings.Contains(mods, "n")
	key := func(line string) string {
		if from > 0 {
			var f []string
			if t := o.value["t"]; t != "" {
				f = strings.Split(line, t)
			} else {
				f = strings.Fields(line)
			}
			line = strings.Join(f[min(from-1, len(f)):min(max(to, from), len(f))], " ")
		}
		if o.has("f") {
			line = strings.ToLower(line)
		}
		return line
	}
	compare := func(a, b string) int {
		a, b = key(a), key(b)
		if numeric || o.has("h") {
			if c := cmp.Compare(leadingNumber(a), leadingNumber(b)); c != 0 {
				return c
			}
			if from > 0 {
				return 0
			}
		}
		return cmp.Compare(a, b)
	}
	slices.SortStableFunc(all, func(a, b string) int {
		c := compare(a, b)
		if o.has("r") || strings.Contains(mods, "r") {
			c = -c
		}
		if c == 0 && !o.has("s") && !o.has("u") {
			c = cmp.Compare(a, b)
		}
		return c
	})
	if o.has("u") {
		all = slices.CompactFunc(all, func(a, b string) bool { return compare(a, b) == 0 })
	}
	return printLines(all)
}

func printLines(all []string) error {
	out := bufio.NewWriter(os.Stdout)
	for _, line := range all {
		out.WriteString(line)
		out.WriteByte('\n')
	}
	return out.Flush()
}

var sortKeyForm = regexp.MustCompile(`^(\d+)(?:\.\d+)?([a-z]*)(?:,(\d+)(?:\.\d+)?([a-z]*))?$`)

func sortKey(s string) (from, to int, mods string, err error) {
	if s == "" {
		return 0, 0, "", nil
	}
	m := sortKeyForm.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, "", usage("-k %s: bad key", s)
	}
	from, _ = strconv.Atoi(m[1])
	to = 1 << 30
	if m[3] != "" {
		to, _ = strconv.Atoi(m[3])
	}
	return from, to, m[2] + m[4], nil
}

var numberForm = regexp.MustCompile(`^\s*-?[0-9]*\.?[0-9]*`)

// leadingNumber is the value of a line for sort -n and -h.
func leadingNumber(s string) float64 {
	m := numberForm.FindString(s)
	n, _ := strconv.ParseFloat(strings.TrimSpace(m), 64)
	if rest := s[len(m):]; rest != "" {
		if at := strings.IndexByte("KMGTP", rest[0]); at >= 0 {
			for range at + 1 {
				n *= 1024
			}
		}
	}
	return n
}

func uniq(args []string) error {
	o, err := parse("cdui", args, "count=c", "repeated=d", "unique=u")
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	var last string
	count := 0
	flush := func() {
		if count == 0 || o.has("d") && count == 1 || o.has("u") && count > 1 {
			return
		}
		if o.has("c") {
			fmt.Fprintf(out, "%7d ", count)
		}
		fmt.Fprintln(out, last)
	}
	err = input("uniq", o.rest[:min(1, len(o.rest))], func(_ string, r io.Reader) error {
		return lines(r, func(line []byte) bool {
			s := string(line)
			if count > 0 && (s == last || o.has("i") && strings.EqualFold(s, last)) {
				count++
				return true
			}
			flush()
			last, count = s, 1
			return true
		})
	})
	flush()
	return err
}
