package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// code runs a program and gives its status as an exit code.
func (s *session) code(prog *syntax.File) error {
	err := s.runner.Run(context.Background(), prog)
	var status interp.ExitStatus
	if errors.As(err, &status) {
		return exitCode(status)
	}
	return err
}

// ranges reads 1,3-5,7- into a test.
func ranges(s string) (func(int) bool, error) {
	type span struct{ from, to int }
	var spans []span
	for part := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(part, "-")
		sp := span{1, 1 << 30}
		var err1, err2 error
		if a != "" {
			sp.from, err1 = strconv.Atoi(a)
		}
		switch {
		case !isRange:
			sp.to = sp.from
		case b != "":
			sp.to, err2 = strconv.Atoi(b)
		}
		if err1 != nil || err2 != nil || sp.from < 1 || a == "" && b == "" {
			return nil, usage("%s: bad list", s)
		}
		spans = append(spans, sp)
	}
	return func(n int) bool {
		return slices.ContainsFunc(spans, func(sp span) bool { return n >= sp.from && n <= sp.to })
	}, nil
}

func cut(args []string) error {
	o, err := parse("d:f:c:b:s", args, "delimiter=d", "fields=f", "characters=c", "bytes=b", "output-delimiter=o")
	if err != nil {
		return err
	}
	spec := o.value["f"] + o.value["c"] + o.value["b"]
	in, err := ranges(spec)
	if err != nil {
		return err
	}
	sep := "\t"
	if d, ok := o.value["d"]; ok {
		sep = d
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	return input("cut", o.rest, func(_ string, r io.Reader) error {
		return lines(r, func(line []byte) bool {
			var kept []string
			parts, join := strings.Split(string(line), sep), sep
			if !o.has("f") {
				parts, join = strings.Split(string(line), ""), ""
			} else if len(parts) == 1 {
				if !o.has("s") {
					fmt.Fprintln(out, parts[0])
				}
				return true
			}
			for i, p := range parts {
				if in(i + 1) {
					kept = append(kept, p)
				}
			}
			fmt.Fprintln(out, strings.Join(kept, join))
			return true
		})
	})
}

// set reads the a-z\n[:upper:] of tr.
func set(s string) []rune {
	classes := map[string]string{
		"upper": "A-Z", "lower": "a-z", "digit": "0-9", "alpha": "A-Za-z", "alnum": "A-Za-z0-9",
		"space": ` \t-\r`, "blank": ` \t`, "punct": "!-/:-@[-`{-~", "xdigit": "0-9A-Fa-f",
	}
	var out []rune
	for name, chars := range classes {
		s = strings.ReplaceAll(s, "[:"+name+":]", chars)
	}
	escapes := map[rune]rune{'n': '\n', 't': '\t', 'r': '\r', '0': 0, 'v': '\v', 'f': '\f', 'a': '\a', 'b': '\b'}
	in := []rune(s)
	next := func(i int) (rune, int) {
		if in[i] == '\\' && i+1 < len(in) {
			if in[i+1] >= '0' && in[i+1] <= '7' {
				n, j := rune(0), i+1
				for ; j < len(in) && j < i+4 && in[j] >= '0' && in[j] <= '7'; j++ {
					n = n*8 + in[j] - '0'
				}
				return n, j
			}
			if e, ok := escapes[in[i+1]]; ok {
				return e, i + 2
			}
			return in[i+1], i + 2
		}
		return in[i], i + 1
	}
	for i := 0; i < len(in); {
		var from, to rune
		from, i = next(i)
		if i+1 < len(in) && in[i] == '-' {
			to, i = next(i + 1)
			for c := from; c <= to; c++ {
				out = append(out, c)
			}
			continue
		}
		out = append(out, from)
	}
	return out
}

func tr(args []string) error {
	o, err := parse("dscC", args, "delete=d", "squeeze-repeats=s", "complement=c")
	if err != nil {
		return err
	}
	if len(o.rest) == 0 || len(o.rest) > 2 {
		return usage("tr [-cds] SET1 [SET2]")
	}
	first := set(o.rest[0])
	var second []rune
	if len(o.rest) == 2 {
		second = set(o.rest[1])
	}
	if !o.has("d") && !o.has("s") && len(second) == 0 {
		return usage("two sets are needed")
	}
	in := func(c rune) int {
		at := slices.Index(first, c)
		if o.has("c") || o.has("C") {
			return btoi(at < 0) - 1
		}
		return at
	}
	squeeze := second
	if len(second) == 0 {
		squeeze = first
	}
	r, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	last := rune(-1)
	for {
		c, size, err := r.ReadRune()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		raw := c == utf8.RuneError && size == 1
		at := -1
		if !raw {
			at = in(c)
		}
		switch {
		case raw: // not text: passed on as it is
			r.UnreadRune()
			b, _ := r.ReadByte()
			out.WriteByte(b)
			continue
		case at >= 0 && o.has("d"):
			continue
		case at >= 0 && len(second) > 0:
			c = second[min(at, len(second)-1)]
			if o.has("c") || o.has("C") {
				c = second[len(second)-1]
			}
		}
		if o.has("s") && c == last && slices.Contains(squeeze, c) != (len(second) == 0 && (o.has("c") || o.has("C"))) {
			continue
		}
		last = c
		out.WriteRune(c)
	}
}

func seq(args []string) error {
	o, err := parseLeading("s:wf:", negative(args))
	if err != nil {
		return err
	}
	rest := o.rest
	nums := []float64{1, 1, 1}
	at := map[int][]int{1: {2}, 2: {0, 2}, 3: {0, 1, 2}}[len(rest)]
	if at == nil {
		return usage("seq [FIRST [STEP]] LAST")
	}
	digits := 0
	for i, text := range rest {
		if nums[at[i]], err = strconv.ParseFloat(text, 64); err != nil {
			return usage("%s: number expected", text)
		}
		if _, frac, ok := strings.Cut(text, "."); ok && at[i] != 2 {
			digits = max(digits, len(frac))
		}
	}
	if nums[1] == 0 {
		return usage("the step must not be 0")
	}
	sep := "\n"
	if s, ok := o.value["s"]; ok {
		sep = s
	}
	width := 0
	if o.has("w") {
		width = max(len(strconv.FormatFloat(nums[0], 'f', digits, 64)), len(strconv.FormatFloat(nums[2], 'f', digits, 64)))
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for i := 0; ; i++ {
		n := nums[0] + float64(i)*nums[1]
		if nums[1] > 0 && n > nums[2]+1e-9 || nums[1] < 0 && n < nums[2]-1e-9 {
			if i > 0 {
				out.WriteByte('\n')
			}
			return nil
		}
		if i > 0 {
			out.WriteString(sep)
		}
		if _, err := fmt.Fprintf(out, "%0*s", width, strconv.FormatFloat(n, 'f', digits, 64)); err != nil {
			return err
		}
	}
}

// negative keeps a first number such as -3 from being read as flags.
func negative(args []string) []string {
	for i, a := range args {
		if len(a) > 1 && a[0] == '-' && (a[1] >= '0' && a[1] <= '9' || a[1] == '.') {
			return slices.Insert(slices.Clone(args), i, "--")
		}
		if !strings.HasPrefix(a, "-") {
			break
		}
	}
	return args
}

func yes(args []string) error {
	word := "y"
	if len(args) > 0 {
		word = strings.Join(args, " ")
	}
	block := []byte(strings.Repeat(word+"\n", max(1, 32<<10/(len(word)+1))))
	for {
		if _, err := os.Stdout.Write(block); err != nil {
			return err
		}
	}
}

func numberLines(args []string) error {
	n := 0
	return input("nl", args, func(_ string, r io.Reader) error {
		return lines(r, func(line []byte) bool {
			if len(line) == 0 {
				fmt.Println()
				return true
			}
			n++
			fmt.Printf("%6d\t%s\n", n, line)
			return true
		})
	})
}

func reverse(args []string) error {
	return input("rev", args, func(_ string, r io.Reader) error {
		return lines(r, func(line []byte) bool {
			runes := []rune(string(line))
			slices.Reverse(runes)
			fmt.Println(string(runes))
			return true
		})
	})
}

func tac(args []string) error {
	return input("tac", args, func(_ string, r io.Reader) error {
		var all []string
		err := lines(r, func(line []byte) bool { all = append(all, string(line)); return true })
		slices.Reverse(all)
		return errors.Join(err, printLines(all))
	})
}
