-- ARGV: prefix
local names = KEYS[1] .. 'names'
local out = {}
for _, name in ipairs(redis.call('ZRANGEBYLEX', names, '[' .. ARGV[1], '(' .. ARGV[1] .. '\255')) do
  local value = redis.call('GET', KEYS[1] .. 'value:' .. name)
  if value then
    out[#out + 1] = name
    out[#out + 1] = value
  else
    redis.call('ZREM', names, name)
  end
end
return out
