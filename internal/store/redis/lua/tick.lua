-- Returns how many timers were due and in how many microseconds the next one is, -1 for none.
local n = tick(tonumber(ARGV[1]))
local first = call('ZRANGE', P .. 'timers', 0, 0, 'WITHSCORES')
if not first[2] then return {n, -1} end
return {n, math.max(0, tonumber(first[2]) - now)}
