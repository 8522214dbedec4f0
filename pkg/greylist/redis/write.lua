-- Writes records if all are what they were thought to be, and returns 0. Else it
-- writes nothing, and returns what they are.
-- KEYS: their names. ARGV: for each what it is thought to be, "" for none; then
-- "1" if the time of the last use, the last six bytes, may be another; then for
-- each to be written its number, what it is to be, and its life in milliseconds.
local n = #KEYS
local have = redis.call('MGET', unpack(KEYS))
local loose = ARGV[n + 1] == '1'
for i = 1, n do
	local is, thought = have[i] or '', ARGV[i]
	if is ~= thought and not (loose and #is > 6 and #thought > 6 and string.sub(is, 1, -7) == string.sub(thought, 1, -7)) then
		return have
	end
end
for i = n + 2, #ARGV, 3 do
	local at, value = tonumber(ARGV[i]), ARGV[i + 1]
	local is = have[at] or ''
	if value == '' then
		redis.call('DEL', KEYS[at])
	elseif is == ARGV[at] or struct.unpack('>I6', is, #is - 5) <= struct.unpack('>I6', value, #value - 5) then
		redis.call('SET', KEYS[at], value, 'PX', ARGV[i + 2])
	end -- else somebody has used it later
end
return 0
