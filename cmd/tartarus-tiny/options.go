package main

import (
	"strings"
)

// options are the flags of one call: how often each came, and its last value.
type options struct {
	count map[string]int
	value map[string]string
	rest  []string
}

func (o *options) has(name string) bool { return o.count[name] > 0 }

// parse reads flags anywhere before "--", as GNU tools do. Spec is that of getopt, "rn:" for -r and -n VALUE;
// long maps long names to their letters.
func parse(spec string, args []string, long ...string) (*options, error) {
	return parseArgs(spec, args, true, long)
}

// parseLeading is parse for applets that run another command: flags end at the first argument.
func parseLeading(spec string, args []string, long ...string) (*options, error) {
	return parseArgs(spec, args, false, long)
}

func parseArgs(spec string, args []string, anywhere bool, long []string) (*options, error) {
	o := &options{count: map[string]int{}, value: map[string]string{}}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			o.rest = append(o.rest, args...)
			return o, nil
		case strings.HasPrefix(arg, "--"):
			name, value, given := strings.Cut(arg[2:], "=")
			letter := ""
			for _, l := range long {
				if full, short, _ := strings.Cut(l, "="); full == name {
					letter = short
				}
			}
			if letter == "" {
				return nil, usage("--%s: unknown option", name)
			}
			o.count[letter]++
			if strings.Contains(spec, letter+":") {
				if !given {
					if len(args) == 0 {
						return nil, usage("--%s needs a value", name)
					}
					value, args = args[0], args[1:]
				}
				o.value[letter] = value
			}
		case len(arg) > 1 && arg[0] == '-':
			for i := 1; i < len(arg); i++ {
				letter := arg[i : i+1]
				at := strings.Index(spec, letter)
				if at < 0 || letter == ":" {
					return nil, usage("-%s: unknown option", letter)
				}
				o.count[letter]++
				if !strings.HasPrefix(spec[at+1:], ":") {
					continue
				}
				value := arg[i+1:]
				if value == "" {
					if len(args) == 0 {
						return nil, usage("-%s needs a value", letter)
					}
					value, args = args[0], args[1:]
				}
				o.value[letter] = value
				break
			}
		default:
			o.rest = append(o.rest, arg)
			if !anywhere {
				o.rest = append(o.rest, args...)
				return o, nil
			}
		}
	}
	return o, nil
}
